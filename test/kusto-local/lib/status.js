// Reports of ingestion: rows of the status table that the message names, and
// messages in the shared success and failure queues (learn.microsoft.com/kusto/
// api/netfx/kusto-ingest-client-status).
import { withoutQuery } from './mask.js';

const [FAILURES_ONLY, NONE] = [0, 1];
const [QUEUE, TABLE, BOTH] = [0, 1, 2];

export class StatusReporter {
  constructor(service) {
    this.service = service;
  }

  // outcome: { status, errorCode, failureStatus, details, operationId, activityId }
  async report(message, outcome) {
    const { reportLevel, reportMethod } = message;
    const failed = outcome.status === 'Failed' || outcome.status === 'PartiallySucceeded';
    if (reportLevel === NONE || (reportLevel === FAILURES_ONLY && !failed)) return;
    if (reportMethod === TABLE || reportMethod === BOTH) await this.toTable(message, outcome);
    if (reportMethod === QUEUE || reportMethod === BOTH) await this.toQueue(message, outcome, failed);
  }

  async toTable(message, outcome) {
    const { status } = message;
    if (!status) return;
    const target = this.service.resolve('table', status.url);
    if (!target) {
      this.service.journal.violation(
        'status_table_unusable',
        'the status table of a message is none of this service',
        { path: withoutQuery(status.url) },
      );
      return;
    }
    // Some SDKs give the service's URL; the SAS names the table then.
    const named = new URLSearchParams(target.query).get('tn');
    const path = target.path.split('/').length > 2 ? target.path : `${target.path}/${named}`;
    try {
      await this.service.storage.mergeEntity(
        path,
        target.query,
        status.partitionKey,
        status.rowKey,
        entity(message, outcome),
      );
    } catch (error) {
      this.service.journal.violation('status_table_unusable', `writing the status failed: ${error.message}`, {
        path: withoutQuery(status.url),
      });
    }
  }

  async toQueue(message, outcome, failed) {
    const account = this.service.accounts[0];
    const common = {
      OperationId: outcome.operationId,
      Database: message.database,
      Table: message.table,
      IngestionSourceId: message.id,
      IngestionSourcePath: withoutQuery(message.blobPath),
      RootActivityId: outcome.activityId,
    };
    if (!failed) {
      await this.service.storage.putMessage(account, account.successQueue, { ...common, SucceededOn: now() });
      return;
    }
    await this.service.storage.putMessage(account, account.failedQueue, {
      ...common,
      FailedOn: now(),
      Details: outcome.details,
      ErrorCode: outcome.errorCode,
      FailureStatus: outcome.failureStatus,
      OriginatesFromUpdatePolicy: false,
      ShouldRetry: outcome.failureStatus === 'Transient',
    });
  }
}

export function now() {
  return new Date().toISOString().replace('Z', '0000Z');
}

function entity(message, outcome) {
  const failure = outcome.errorCode
    ? {
        ErrorCode: outcome.errorCode,
        FailureStatus: outcome.failureStatus,
        Details: outcome.details ?? '',
        OriginatesFromUpdatePolicy: false,
      }
    : {};
  return {
    Status: outcome.status,
    IngestionSourceId: message.id,
    IngestionSourcePath: withoutQuery(message.blobPath),
    Database: message.database,
    Table: message.table,
    UpdatedOn: now(),
    'UpdatedOn@odata.type': 'Edm.DateTime',
    OperationId: outcome.operationId,
    'OperationId@odata.type': 'Edm.Guid',
    ActivityId: outcome.activityId,
    'ActivityId@odata.type': 'Edm.Guid',
    ...failure,
  };
}
