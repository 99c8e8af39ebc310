// Ingestion that failed, however it was asked for: by message, by command or by
// streaming; with the codes of learn.microsoft.com/azure/data-explorer/error-codes.
import { CsvError } from './csv.js';
import { KustoError } from './errors.js';
import { maskSecrets } from './mask.js';

export class IngestionFailure extends Error {
  constructor(code, details, failureStatus = 'Permanent') {
    super(details);
    Object.assign(this, { code, failureStatus });
  }
}

// As a status row has it.
export function asFailure(error) {
  const failed = (errorCode, details, failureStatus = 'Permanent') => ({
    status: 'Failed',
    errorCode,
    failureStatus,
    details: maskSecrets(details),
  });
  if (error instanceof IngestionFailure) return failed(error.code, error.message, error.failureStatus);
  if (error instanceof CsvError) return failed(error.code, error.message);
  if (error instanceof KustoError) return failed(error.code, error.detail);
  if (error.code?.startsWith?.('Z_'))
    return failed('BadRequest_InvalidArchive', `The blob cannot be decompressed: ${error.message}`);
  return failed('General_InternalServerError', error.message, 'Transient');
}

// As the answer to a request has it.
export function asKustoError(error, type = 'Kusto.DataNode.Exceptions.IngestionException') {
  if (error instanceof KustoError) return error;
  const { errorCode, details, failureStatus } = asFailure(error);
  return new KustoError(400, errorCode, details, { type, permanent: failureStatus === 'Permanent' });
}
