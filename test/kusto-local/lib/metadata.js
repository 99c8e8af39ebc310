// GET /v1/rest/auth/metadata: tells a client where to get its token and for what.

export const RESOURCE_ID = 'https://kusto.kusto.windows.net';

// mode: 'aad' | 'null' (what the Kusto emulator says) | 'missing' (404) | 'empty'
export function authMetadata({ config, urls }) {
  const headers = { 'Content-Type': 'application/json', 'Cache-Control': 'public, max-age=86400' };
  switch (config.metadata) {
    case 'null':
      return { status: 200, headers, body: '{"AzureAD":null}' };
    case 'missing':
      return {
        status: 404,
        headers: { 'Content-Type': 'text/html' },
        body: '<html><body>404 - not found</body></html>',
      };
    case 'empty':
      return { status: 200, headers, body: '{}' };
    default: {
      const aad = {
        LoginEndpoint: urls.login,
        LoginMfaRequired: false,
        KustoClientAppId: 'db662dc1-0cfe-4e1c-a843-19a68e65be58',
        KustoClientRedirectUri: 'https://microsoft/kustoclient',
        KustoServiceResourceId: RESOURCE_ID,
        FirstPartyAuthorityUrl: `${urls.login}/f8cdef31-a31e-4b4a-93e4-5f571e91255a`,
      };
      return { status: 200, headers, body: JSON.stringify({ AzureAD: aad }) };
    }
  }
}
