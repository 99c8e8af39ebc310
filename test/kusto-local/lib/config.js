// What POST /config can change, with the values at the start.

export const DEFAULTS = {
  // 'required': 401 without a valid bearer token. 'none': a service that asks for none.
  auth: 'required',
  // /v1/rest/auth/metadata: 'aad', 'null', 'missing', 'empty'
  metadata: 'aad',
  // Seconds; negative values make what is issued expired from the start.
  token_lifetime: 3600,
  identity_token_lifetime: 3600 * 4,
  sas_lifetime: 12 * 3600,
  // Roles of the one principal: what is missing is refused with 403.
  roles: ['admin', 'user', 'viewer', 'ingestor'],
  // Ingestion resources: accounts to name (null: all), resource types to leave out.
  accounts: null,
  omit_resources: [],
  // Blobs go to an account that swallows them: ours, or one at this URI that somebody else serves.
  discard: false,
  // Blobs go to Azurite itself: no proxy takes processor time, and none sees or disturbs them.
  direct_blobs: false,
  // Milliseconds from the first message of a batch to its ingestion.
  batching_ms: 50,
  // Holds every batch back until it is set to false again.
  hold_ingestion: false,
  // Each message is ingested a second time, as at-least-once delivery allows.
  duplicate_delivery: false,
  // 'auto': strict for kusto_ingest only; true: for every client; false: for none.
  strict: 'auto',
  // What ingestIfNotExists finds is reported as: 'Skipped', 'Skipped' with an error code
  // ('code'), or 'Failed' with one ('failed').
  tag_hit: 'Skipped',
  // Scripted outcomes of ingestion: see README.md.
  outcomes: [],
  // Streaming ingestion: the policy's default, and the limit of a request.
  streaming: true,
  streaming_limit: 4 * 1024 * 1024,
  // Streaming ingestion goes by the columns that a table had at its first request, or when
  // the cache was last cleared.
  streaming_schema_cache: false,
  query_row_limit: 500_000,
  // v2 query results give bags and arrays as JSON text, or as values.
  dynamic_as_text: true,
};

const TYPES = { discard: ['boolean', 'string'] };

const CHOICES = {
  auth: ['required', 'none'],
  metadata: ['aad', 'null', 'missing', 'empty'],
  strict: ['auto', true, false],
  tag_hit: ['Skipped', 'code', 'failed'],
};

export function makeConfig(overrides = {}) {
  return changeConfig(structuredClone(DEFAULTS), overrides);
}

export function changeConfig(config, changes) {
  for (const [key, value] of Object.entries(changes)) {
    if (!(key in DEFAULTS)) throw new RangeError(`unknown configuration key: ${key}`);
    if (CHOICES[key] && !CHOICES[key].includes(value))
      throw new RangeError(`${key} must be one of ${CHOICES[key].join(', ')}`);
    const types = TYPES[key] ?? [typeof DEFAULTS[key]];
    if (!CHOICES[key] && key !== 'accounts' && !types.includes(typeof value)) {
      throw new RangeError(`${key} must be a ${types.join(' or a ')}`);
    }
  }
  return Object.assign(config, changes);
}
