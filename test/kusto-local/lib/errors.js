// Errors in the service's own form: learn.microsoft.com/kusto/api/rest/
// response-http-unsuccessful, with the fields of Microsoft's OneApiError.
import { randomUUID } from 'node:crypto';

const INVALID = 'Request is invalid and cannot be executed.';

export class KustoError extends Error {
  constructor(status, code, detail, { type, message = INVALID, permanent = true, inner = null } = {}) {
    super(detail);
    Object.assign(this, { status, code, detail, permanent, inner, summary: message });
    this.type = type ?? 'Kusto.Data.Exceptions.KustoBadRequestException';
  }

  static badRequest(code, detail, type) {
    return new KustoError(400, code, detail, { type });
  }

  static entityNotFound(kind, name) {
    return new KustoError(
      400,
      'BadRequest_EntityNotFound',
      `Entity ID '${name}' of kind '${kind}' was not found.`,
      {
        type: 'Kusto.Common.Svc.Exceptions.EntityNotFoundException',
      },
    );
  }

  static syntax(detail) {
    return new KustoError(400, 'BadRequest_SyntaxError', `Syntax error: ${detail}`, {
      type: 'Kusto.Data.Exceptions.SyntaxException',
    });
  }

  // A query's own mistakes come as General_BadRequest with the cause inside.
  static semantic(detail) {
    return KustoError.query('SEM0100', 'Semantic', 'Kusto.Data.Exceptions.SemanticException', detail);
  }

  static querySyntax(detail) {
    return KustoError.query('SYN0002', 'Syntax', 'Kusto.Data.Exceptions.SyntaxException', detail);
  }

  static query(code, kind, type, detail) {
    const text = `${kind} error: ${code}: ${detail}`;
    return new KustoError(400, 'General_BadRequest', `Request is invalid and cannot be processed: ${text}`, {
      inner: { code, message: detail, '@type': type, '@message': text, '@permanent': true },
    });
  }

  static forbidden(principal, operation, entity) {
    return new KustoError(
      403,
      'Forbidden',
      `Principal '${principal}' is not authorized to perform operation '${operation}' on ${entity}.`,
      {
        type: 'Kusto.DataNode.Exceptions.UnauthorizedDatabaseAccessException',
        message: 'Caller is not authorized to perform this action',
      },
    );
  }

  body(context) {
    const about = context.about(this);
    return {
      error: {
        code: this.code,
        message: this.summary,
        '@type': this.type,
        '@message': this.detail,
        '@context': about,
        '@permanent': this.permanent,
        '@failureCode': this.status,
        ...(this.inner ? { innererror: { ...this.inner, '@context': about } } : {}),
      },
    };
  }
}

// What the service says of itself and of the request in an error.
export class ErrorContext {
  constructor(clientRequestId, activityId = randomUUID()) {
    Object.assign(this, { clientRequestId, activityId });
  }

  about() {
    return {
      timestamp: new Date().toISOString().replace('Z', '0000Z'),
      serviceAlias: 'KUSTOLOCAL',
      machineName: 'KEngine000000',
      processName: 'kusto-local',
      processId: process.pid,
      threadId: 1,
      clientRequestId: this.clientRequestId ?? null,
      activityId: this.activityId,
      subActivityId: this.activityId,
      activityType: 'PO.OWIN.CallContext',
      parentActivityId: this.activityId,
      activityStack: '(Activity stack: CRID=… ARID=…)',
      appDomainName: 'kusto-local',
    };
  }
}
