// The shared access signatures that the service hands out, and their untimely
// end: Azure refuses a signature when its time is over or its key was changed,
// in the middle of whatever is being done with it.
import { serviceSas } from './sas.js';

const signatureIn = (query) => new URLSearchParams(query).get('sig');

export class Signatures {
  constructor() {
    this.issued = new Set();
    this.ended = new Set();
    this.rounds = 0;
  }

  issue(account, service, name, lifetimeSeconds) {
    const sas = serviceSas(account, service, name, lifetimeSeconds, this.rounds);
    this.issued.add(signatureIn(sas));
    return sas;
  }

  // All that were issued so far are good for nothing.
  endAll() {
    this.rounds += 1;
    for (const signature of this.issued) this.ended.add(signature);
    this.issued.clear();
  }

  hasEnded(query) {
    return this.ended.has(signatureIn(query));
  }
}

// What storage answers then (learn.microsoft.com/rest/api/storageservices/status-and-error-codes2).
export function endedAnswer(service) {
  const [code, message] = [
    'AuthenticationFailed',
    'Server failed to authenticate the request. Signature not valid in the specified time frame',
  ];
  const json = JSON.stringify({ 'odata.error': { code, message: { lang: 'en-US', value: message } } });
  const xml = `<?xml version="1.0" encoding="utf-8"?><Error><Code>${code}</Code><Message>${message}</Message></Error>`;
  return {
    status: 403,
    headers: {
      'content-type': service === 'table' ? 'application/json' : 'application/xml',
      'x-ms-error-code': code,
    },
    body: service === 'table' ? json : xml,
  };
}
