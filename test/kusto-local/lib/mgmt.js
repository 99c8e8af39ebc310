// Management commands of the data-management host: the resources for queued
// ingestion and the identity token. Everything else is an engine's business.
import { KustoError } from './errors.js';
import { tableOf } from './result.js';

const GET_RESOURCES = /^\.get\s+ingestion\s+resources(\s+with\s*\(.*\))?\s*;?\s*$/is;
const GET_IDENTITY = /^\.get\s+kusto\s+identity\s+token\s*;?\s*$/i;
const SHOW_VERSION = /^\.show\s+version\s*;?\s*$/i;

export function isDataManagementCommand(csl) {
  return /^\.get\s+(ingestion\s+resources|kusto\s+identity)/i.test(csl);
}

export function wrongEndpoint() {
  return KustoError.syntax('Query could not be parsed');
}

export class DataManagementCommands {
  constructor(service) {
    this.service = service;
    this.asked = 0;
  }

  run(csl, caller) {
    const { service } = this;
    if (GET_RESOURCES.test(csl)) {
      service.requireRole(caller, 'ingestor', 'Ingest', "'any database'");
      return this.resources();
    }
    if (GET_IDENTITY.test(csl)) {
      service.requireRole(caller, 'ingestor', 'Ingest', "'any database'");
      const token = service.tokens.issue(
        'identity',
        { principal: caller.principal },
        service.config.identity_token_lifetime,
      );
      return tableOf('AuthorizationContext', [[token]]);
    }
    if (SHOW_VERSION.test(csl)) return versionTable('DataManagement');
    throw wrongEndpoint();
  }

  // Rows come in any order, columns sometimes the other way round, and there are
  // types that no client knows: all of that is open to the real service.
  resources() {
    this.asked += 1;
    const rows = shuffled(this.resourceRows());
    if (this.asked % 2 === 0) {
      return tableOf(
        'StorageRoot, ResourceTypeName',
        rows.map(([type, root]) => [root, type]),
      );
    }
    return tableOf('ResourceTypeName, StorageRoot', rows);
  }

  resourceRows() {
    const { config, discard, accounts, signatures } = this.service;
    const life = config.sas_lifetime;
    const chosen = accounts.filter((a) => !config.accounts || config.accounts.includes(a.name));
    const rows = [];
    for (const account of chosen) {
      const { blob, queue, table } = account.urls;
      const add = (type, base, service, name) =>
        rows.push([type, `${base}/${name}?${signatures.issue(account, service, name, life)}`]);
      for (const name of account.queues)
        add('SecuredReadyForAggregationQueue', `${queue}/${account.name}`, 'queue', name);
      add('FailedIngestionsQueue', `${queue}/${account.name}`, 'queue', account.failedQueue);
      add('SuccessfulIngestionsQueue', `${queue}/${account.name}`, 'queue', account.successQueue);
      // Without the account in the path: the form that the SDK's table client takes.
      add('IngestionsStatusTable', table, 'table', account.statusTable);
      add('KustoLocalUnknownResource', `${blob}/${account.name}`, 'blob', account.containers[0]);
      if (!config.discard) {
        const base = config.direct_blobs ? this.service.storageUrl('blob') : blob;
        for (const name of account.containers) add('TempStorage', `${base}/${account.name}`, 'blob', name);
      }
    }
    if (config.discard) {
      for (const name of ['discard-0', 'discard-1']) rows.push(['TempStorage', discard.resource(name, life, config)]);
    }
    return rows.filter(([type]) => !config.omit_resources.includes(type));
  }
}

export function versionTable(serviceType) {
  return tableOf('BuildVersion, BuildTime:datetime, ServiceType, ProductVersion', [
    ['1.0.0.0', null, serviceType, 'kusto-local 1.0'],
  ]);
}

function shuffled(list) {
  const out = list.slice();
  for (let i = out.length - 1; i > 0; i -= 1) {
    const j = Math.floor(Math.random() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}
