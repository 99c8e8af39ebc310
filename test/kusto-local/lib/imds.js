// Managed identity, two hosts of it: the virtual machine's metadata service
// (learn.microsoft.com/entra/identity/managed-identities-azure-resources/
// how-to-use-vm-token) and App Service (learn.microsoft.com/azure/app-service/
// overview-managed-identity).

const HEADERS = { 'Content-Type': 'application/json; charset=utf-8' };
const IMDS_PATH = '/metadata/identity/oauth2/token';
const APP_SERVICE_PATH = '/msi/token';
const IMDS_VERSIONS = new Set(['2018-02-01', '2019-08-01', '2021-02-01']);

export class Imds {
  constructor(service) {
    this.service = service;
  }

  handle(request) {
    if (request.method !== 'GET') return problem(405, 'invalid_request', 'Method not allowed');
    if (request.headers['x-forwarded-for']) {
      return problem(400, 'invalid_request', 'Requests that went through a proxy are refused');
    }
    const params = new URLSearchParams(request.query);
    if (request.path === IMDS_PATH) return this.vm(request, params);
    if (request.path === APP_SERVICE_PATH) return this.appService(request, params);
    return problem(404, 'not_found', `Path ${request.path} not found`);
  }

  vm({ headers }, params) {
    if (headers.metadata?.toLowerCase() !== 'true') {
      return problem(400, 'invalid_request', 'Required metadata header not specified');
    }
    if (!IMDS_VERSIONS.has(params.get('api-version'))) {
      return problem(400, 'invalid_request', 'Required query variable api-version is missing or unknown');
    }
    return this.issue(params, { full: true });
  }

  appService({ headers }, params) {
    if (headers['x-identity-header'] !== this.service.identityHeader) {
      return problem(401, 'Unauthorized', 'X-IDENTITY-HEADER is missing or wrong');
    }
    if (params.get('api-version') !== '2019-08-01') {
      return problem(400, 'invalid_request', 'The api-version must be 2019-08-01');
    }
    return this.issue(params, { full: false });
  }

  issue(params, { full }) {
    const { config, client, tokens } = this.service;
    const resource = params.get('resource');
    if (!resource)
      return problem(400, 'invalid_resource', "AADSTS50001: The application named '' was not found.");
    if (resource.endsWith('/.default')) {
      return problem(400, 'invalid_resource', 'AADSTS500011: a scope stands where a resource must');
    }
    const wanted = params.get('client_id');
    if (wanted && wanted !== client.client_id) return problem(400, 'invalid_request', 'Identity not found');
    const lifetime = config.token_lifetime;
    const now = Math.floor(Date.now() / 1000);
    const claims = { aud: resource, appid: client.client_id, tid: client.tenant };
    const token = {
      access_token: tokens.issue('bearer', claims, lifetime),
      client_id: client.client_id,
      expires_on: String(now + lifetime),
      resource,
      token_type: 'Bearer',
    };
    const more = { expires_in: String(lifetime), ext_expires_in: String(lifetime), not_before: String(now) };
    return { status: 200, headers: HEADERS, body: JSON.stringify(full ? { ...token, ...more } : token) };
  }
}

function problem(status, error, description) {
  return { status, headers: HEADERS, body: JSON.stringify({ error, error_description: description }) };
}
