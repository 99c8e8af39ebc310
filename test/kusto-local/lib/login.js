// The token endpoint of the Microsoft identity platform, as far as a confidential
// client needs it: learn.microsoft.com/entra/identity-platform/
// v2-oauth2-client-creds-grant-flow, plus the discovery document MSAL reads.
import { randomUUID } from 'node:crypto';

const JSON_HEADERS = {
  'Content-Type': 'application/json; charset=utf-8',
  'Cache-Control': 'no-store, no-cache',
};
const TOKEN_PATH = /^\/([^/]+)\/oauth2\/v2\.0\/token$/;
const DISCOVERY_PATH = /^\/([^/]+)\/v2\.0\/\.well-known\/openid-configuration$/;
const ASSERTION_TYPE = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer';

export class Login {
  // service: { config, client, tokens, journal, urls }
  constructor(service) {
    this.service = service;
    this.issued = 0;
  }

  handle(request) {
    const { method, path } = request;
    const discovery = DISCOVERY_PATH.exec(path);
    if (discovery && method === 'GET') return this.discovery(discovery[1]);
    const token = TOKEN_PATH.exec(path);
    if (token && method === 'POST') return this.token(token[1], request);
    return { status: 404, headers: JSON_HEADERS, body: JSON.stringify({ error: 'not_found' }) };
  }

  discovery(tenant) {
    const base = `${this.service.urls.login}/${tenant}`;
    return ok({
      issuer: `${base}/v2.0`,
      authorization_endpoint: `${base}/oauth2/v2.0/authorize`,
      token_endpoint: `${base}/oauth2/v2.0/token`,
      end_session_endpoint: `${base}/oauth2/v2.0/logout`,
      jwks_uri: `${base}/discovery/v2.0/keys`,
      response_types_supported: ['code', 'token'],
      token_endpoint_auth_methods_supported: ['client_secret_post', 'private_key_jwt'],
    });
  }

  token(tenant, { headers, body, path, entry }) {
    const { client, config, journal, tokens } = this.service;
    const form = parseForm(body.toString('latin1'), headers['content-type'], (message) =>
      journal.violation('token_request_form', message, { service: 'login', path }),
    );
    if (!form) return failure(400, 'invalid_request', 900144, 'The request body is not a proper form.');
    entry.grant = form.get('grant_type');
    if (form.get('grant_type') !== 'client_credentials') {
      return failure(
        400,
        'unsupported_grant_type',
        70003,
        `The app requested an unsupported grant type '${form.get('grant_type')}'.`,
      );
    }
    if (tenant !== client.tenant) {
      return failure(400, 'invalid_request', 90002, `Tenant '${tenant}' not found.`);
    }
    const scope = form
      .get('scope')
      ?.split(' ')
      .find((s) => s.endsWith('/.default'));
    if (!scope) {
      return failure(
        400,
        'invalid_scope',
        70011,
        `The provided value for the input parameter 'scope' is not valid.`,
      );
    }
    if (form.get('client_id') !== client.client_id) {
      return failure(
        400,
        'unauthorized_client',
        700016,
        `Application with identifier '${form.get('client_id')}' was not found in the directory.`,
      );
    }
    if (form.has('client_assertion')) {
      const problem = this.assertionProblem(form);
      if (problem) return failure(401, 'invalid_client', 700027, problem);
    } else if (form.get('client_secret') !== client.client_secret) {
      return failure(401, 'invalid_client', 7000215, 'Invalid client secret provided.');
    }
    const lifetime = config.token_lifetime;
    this.issued += 1;
    // The two token endpoints of the platform differ; clients must take both.
    const seconds = this.issued % 2 ? lifetime : String(lifetime);
    return ok({
      token_type: 'Bearer',
      expires_in: seconds,
      ext_expires_in: seconds,
      access_token: tokens.issue(
        'bearer',
        { aud: scope.slice(0, -'/.default'.length), appid: client.client_id, tid: tenant },
        lifetime,
      ),
    });
  }

  // A federated token is checked for shape and audience; its signature is the
  // business of an issuer that is not here.
  assertionProblem(form) {
    if (form.get('client_assertion_type') !== ASSERTION_TYPE)
      return 'The client_assertion_type is not valid.';
    const [, claims] = form.get('client_assertion').split('.');
    try {
      const { exp, aud } = JSON.parse(Buffer.from(claims ?? '', 'base64url').toString('utf8'));
      if (!aud) return 'The client assertion has no audience.';
      if (exp !== undefined && exp <= Date.now() / 1000) return 'The client assertion is expired.';
      return null;
    } catch {
      return 'The client assertion is not a JWT.';
    }
  }
}

// Strict application/x-www-form-urlencoded: every byte that must be encoded is.
function parseForm(text, contentType, violation) {
  if (!/^application\/x-www-form-urlencoded\b/i.test(contentType ?? '')) {
    violation(`the Content-Type of the token request is ${contentType}`);
    return null;
  }
  const form = new Map();
  for (const pair of text.split('&')) {
    const [name, value, ...more] = pair.split('=');
    const broken =
      value === undefined || more.length > 0 || !/^(?:[A-Za-z0-9*._~+-]|%[0-9A-Fa-f]{2})*$/.test(value);
    if (broken) {
      violation(`the field ${name} of the token request is not percent-encoded`);
      return null;
    }
    if (form.has(name)) violation(`the field ${name} of the token request is repeated`);
    form.set(decodeURIComponent(name.replaceAll('+', ' ')), decodeURIComponent(value.replaceAll('+', ' ')));
  }
  return form;
}

function ok(object) {
  return { status: 200, headers: JSON_HEADERS, body: JSON.stringify(object) };
}

function failure(status, error, code, text) {
  const [trace, correlation] = [randomUUID(), randomUUID()];
  const now = new Date().toISOString().replace('T', ' ').replace(/\.\d+/, '');
  return {
    status,
    headers: JSON_HEADERS,
    body: JSON.stringify({
      error,
      error_description: `AADSTS${code}: ${text} Trace ID: ${trace} Correlation ID: ${correlation} Timestamp: ${now}`,
      error_codes: [code],
      timestamp: now,
      trace_id: trace,
      correlation_id: correlation,
    }),
  };
}
