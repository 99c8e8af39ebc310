// What every request of a well-behaved client has, by service. Findings are
// violations; the request is served all the same, as the real service does.

const KUSTO = new Set(['engine', 'ingest']);
const STORAGE = new Set(['blob', 'queue', 'table', 'discard']);
const UUID = '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}';
const REQUEST_ID = new RegExp(`^[A-Za-z0-9_.]+;${UUID}(;\\d+)?$`, 'i');

// The product under test is held to rules that Microsoft's own clients break.
// These name their program's path as the application, which may lie in a
// directory called kusto_ingest.
export function isProductName(clientVersion, application) {
  return /^Kusto\.kusto_ingest\b/.test(clientVersion ?? '') || application === 'kusto_ingest';
}

export function isProductUnderTest(headers) {
  return isProductName(headers['x-ms-client-version'], headers['x-ms-app']);
}

export function checkHeaders(service, req, journal) {
  const { headers, method } = req;
  const path = req.url.split('?', 1)[0];
  const say = (kind, message) =>
    journal.violation(kind, `${service} ${method} ${path}: ${message}`, { service, path });

  for (let i = 0; i < req.rawHeaders.length; i += 2) {
    if (/[^\t\x20-\x7e]/.test(req.rawHeaders[i + 1])) {
      say('non_ascii_header', `header ${req.rawHeaders[i]} is not ASCII`);
    }
  }
  if (headers.expect) say('expect_header', 'an Expect header stalls the upload');
  if (path === '/v1/rest/auth/metadata') {
    if (headers.authorization) say('token_to_metadata', 'Authorization sent to the metadata endpoint');
  } else if (KUSTO.has(service)) {
    checkKusto(req, say);
  }
  if (STORAGE.has(service)) checkStorage(service, req, say);
}

function checkKusto({ headers, method }, say) {
  if (!/application\/json/i.test(headers.accept ?? '')) {
    say('missing_accept', 'no "Accept: application/json", errors may come back as HTML');
  }
  const id = headers['x-ms-client-request-id'];
  if (!id) say('missing_client_request_id', 'no x-ms-client-request-id');
  else if (isProductUnderTest(headers) && !REQUEST_ID.test(id)) {
    say('bad_client_request_id', `x-ms-client-request-id is not PREFIX;uuid: ${id}`);
  }
  if (!headers['x-ms-app']) say('missing_app', 'no x-ms-app');
  if (!isProductUnderTest(headers)) return;
  if (!headers['x-ms-version']) say('missing_version', 'no x-ms-version');
  if (method === 'POST' && !headers['content-type']) say('missing_content_type', 'no Content-Type');
}

function checkStorage(service, req, say) {
  const { headers, method } = req;
  if (headers.authorization) say('token_to_storage', 'Authorization sent to storage beside the SAS');
  if (!headers['x-ms-version']) say('missing_storage_version', 'no x-ms-version on a storage request');
  if (!/(^|[?&])sig=/.test(req.url)) say('missing_sas', 'a storage request without SAS');
  if (service === 'queue' || service === 'table' || method !== 'PUT') return;
  if (headers['content-encoding'] || headers['x-ms-blob-content-encoding']) {
    say('blob_content_encoding', 'Kusto goes by the name, a Content-Encoding on the blob is wrong');
  }
}
