// Shared access signatures, signed with the account's key as in
// learn.microsoft.com/rest/api/storageservices/create-service-sas and
// .../create-account-sas. Azurite verifies them.
import { createHmac } from 'node:crypto';

const VERSION = '2023-11-03';
const PERMISSIONS = { blob: 'rwd', queue: 'raup', table: 'rau' };

const seconds = (date) => `${date.toISOString().slice(0, 19)}Z`;

function signed(key, lines, params) {
  const signature = createHmac('sha256', Buffer.from(key, 'base64'))
    .update(lines.join('\n'), 'utf8')
    .digest('base64');
  return [...params, ['sig', signature]].map(([k, v]) => `${k}=${encodeURIComponent(v)}`).join('&');
}

// The SAS of one container, queue or table, as the ingestion resources carry it.
// Times have whole seconds: variant tells two of the same second apart.
export function serviceSas(account, service, name, lifetimeSeconds, variant = 0) {
  const now = Date.now();
  const st = seconds(new Date(Math.min(now, now + lifetimeSeconds * 1000) - 300_000 - variant * 1000));
  const se = seconds(new Date(now + lifetimeSeconds * 1000));
  const sp = PERMISSIONS[service];
  const resource = `/${service}/${account.name}/${name}`;
  const head = [sp, st, se, resource, '', '', '', VERSION];
  const params = [
    ['sv', VERSION],
    ['st', st],
    ['se', se],
  ];
  if (service === 'blob') {
    return signed(
      account.key,
      [...head, 'c', '', '', '', '', '', '', ''],
      [...params, ['sr', 'c'], ['sp', sp]],
    );
  }
  if (service === 'table') {
    return signed(account.key, [...head, '', '', '', ''], [...params, ['tn', name], ['sp', sp]]);
  }
  return signed(account.key, head, [...params, ['sp', sp]]);
}

// Full rights for the service's own housekeeping.
export function accountSas(account, now = Date.now()) {
  const st = seconds(new Date(now - 300_000));
  const se = seconds(new Date(now + 30 * 86_400_000));
  const [sp, ss, srt] = ['rwdlacup', 'bqt', 'sco'];
  const lines = [account.name, sp, ss, srt, st, se, '', '', VERSION, '', ''];
  const params = [
    ['sv', VERSION],
    ['ss', ss],
    ['srt', srt],
    ['sp', sp],
    ['st', st],
    ['se', se],
  ];
  return signed(account.key, lines, params);
}
