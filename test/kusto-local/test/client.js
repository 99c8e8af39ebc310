// A small queued-ingestion client that does everything right and names itself as
// the product under test, so that each test can do one thing wrong.
import { randomUUID } from 'node:crypto';
import { gzipSync } from 'node:zlib';

const STRICT = { ValidationOptions: 1, ValidationImplications: 0 };

export class StrictClient {
  constructor(service) {
    this.service = service;
  }

  headers(token) {
    return {
      Authorization: `Bearer ${token}`,
      'x-ms-app': 'kusto_ingest',
      'x-ms-client-version': 'Kusto.kusto_ingest:{0.0}',
      'x-ms-version': '2024-12-12',
      'x-ms-client-request-id': `KPGX.execute;${randomUUID()}`,
    };
  }

  async manage(csl) {
    const token = await this.service.token();
    const response = await this.service.kusto(
      'ingest',
      '/v1/rest/mgmt',
      { db: 'NetDefaultDB', csl },
      this.headers(token),
    );
    const [{ Columns, Rows }] = (await response.json()).Tables;
    return Rows.map((row) => Object.fromEntries(Columns.map((c, i) => [c.ColumnName, row[i]])));
  }

  async connect() {
    this.resources = group(await this.manage('.get ingestion resources'));
    [{ AuthorizationContext: this.identity }] = await this.manage('.get kusto identity token');
    return this;
  }

  first(type) {
    return this.resources.get(type)[0].StorageRoot;
  }

  async put(url, body, headers = {}) {
    return fetch(url, {
      method: 'PUT',
      body,
      headers: { 'x-ms-version': '2023-11-03', 'x-ms-blob-type': 'BlockBlob', ...headers },
    });
  }

  // Uploads the CSV; gives the blob's URL with SAS.
  async upload(csv, { name = `telemetry__T__${randomUUID()}.csv.gz`, bytes = gzipSync(csv), headers } = {}) {
    const url = beforeQuery(this.first('TempStorage'), `/${name}`);
    const response = await this.put(url, bytes, headers);
    if (response.status !== 201) throw new Error(`upload: ${response.status} ${await response.text()}`);
    return url;
  }

  message(url, rawSize, { properties = {}, ...fields } = {}) {
    const id = fields.Id ?? randomUUID();
    return {
      Id: id,
      BlobPath: url,
      RawDataSize: rawSize,
      DatabaseName: 'telemetry',
      TableName: 'T',
      RetainBlobOnSuccess: false,
      FlushImmediately: false,
      ReportLevel: 2,
      ReportMethod: 1,
      SourceMessageCreationTime: new Date().toISOString(),
      ApplicationForTracing: 'kusto_ingest',
      ClientVersionForTracing: 'Kusto.kusto_ingest:{0.0}',
      IngestionStatusInTable: {
        TableConnectionString: this.first('IngestionsStatusTable'),
        PartitionKey: id,
        RowKey: id,
      },
      ...fields,
      AdditionalProperties: {
        authorizationContext: this.identity,
        format: 'csv',
        validationPolicy: JSON.stringify(STRICT),
        ...properties,
      },
    };
  }

  async post(message) {
    const text =
      typeof message === 'string' ? message : Buffer.from(JSON.stringify(message)).toString('base64');
    const response = await fetch(beforeQuery(this.first('SecuredReadyForAggregationQueue'), '/messages'), {
      method: 'POST',
      headers: { 'x-ms-version': '2023-11-03', 'Content-Type': 'application/xml' },
      body: `<QueueMessage><MessageText>${text}</MessageText></QueueMessage>`,
    });
    if (response.status !== 201) throw new Error(`post: ${response.status} ${await response.text()}`);
  }

  // Upload, message, settle: the status entity, or null when there is none.
  async ingest(csv, { blob, rawSize = Buffer.byteLength(csv), ...fields } = {}) {
    const message = this.message(await this.upload(csv, blob), rawSize, fields);
    await this.post(message);
    await this.service.post('/settle');
    return this.status(message.Id);
  }

  async status(id) {
    const target = beforeQuery(this.first('IngestionsStatusTable'), `(PartitionKey='${id}',RowKey='${id}')`);
    const response = await fetch(target, {
      headers: { Accept: 'application/json;odata=nometadata', 'x-ms-version': '2019-02-02' },
    });
    return response.status === 404 ? null : response.json();
  }
}

export function beforeQuery(url, addition) {
  const at = url.indexOf('?');
  return url.slice(0, at) + addition + url.slice(at);
}

function group(rows) {
  const groups = new Map();
  for (const row of rows)
    groups.set(row.ResourceTypeName, [...(groups.get(row.ResourceTypeName) ?? []), row]);
  return groups;
}
