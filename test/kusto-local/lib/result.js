// Result tables as the service writes them: v1 (learn.microsoft.com/kusto/api/
// rest/response-http) and v2 frames, not progressive (.../response-v2).
import { randomUUID } from 'node:crypto';
import { CLR, toJson } from './types.js';

const BYTE_LIMIT = 64 * 1024 * 1024;

// A table from plain rows; columns are given as 'Name:type, …'.
export function tableOf(schema, rows) {
  const columns = schema.split(',').map((part) => {
    const [name, type = 'string'] = part.trim().split(':');
    return { name, type };
  });
  return { columns, rows: () => rows };
}

// The rows as JSON texts, cut at the service's limits on a result.
function rowTexts({ columns, rows }, { rowLimit = Infinity, dynamicAsText }) {
  const texts = [];
  let bytes = 0;
  for (const row of rows()) {
    if (texts.length >= rowLimit)
      return { texts, problem: limitProblem(`record count limit ${rowLimit}`, '0x80DA0003') };
    const text = `[${columns.map((c, i) => toJson(c.type, row[i] ?? null, dynamicAsText)).join(',')}]`;
    bytes += text.length;
    if (bytes > BYTE_LIMIT)
      return { texts, problem: limitProblem(`data size limit ${BYTE_LIMIT}`, '0x80DA0003') };
    texts.push(text);
  }
  return { texts, problem: null };
}

function limitProblem(what, code) {
  const text = `Query result set has exceeded the internal ${what} (E_QUERY_RESULT_SET_TOO_LARGE; ${code}).`;
  return {
    text,
    error: {
      code: 'LimitsExceeded',
      message: 'Request is invalid and cannot be executed.',
      '@type': 'Kusto.Data.Exceptions.KustoServicePartialQueryFailureLimitsExceededException',
      '@message': text,
      '@permanent': true,
    },
  };
}

function v1Table(name, table, options) {
  const { texts, problem } = rowTexts(table, options);
  if (problem) texts.push(JSON.stringify({ Exceptions: [problem.text] }));
  const columns = table.columns.map((c) => ({
    ColumnName: c.name,
    DataType: CLR[c.type],
    ColumnType: c.type,
  }));
  return `{"TableName":${JSON.stringify(name)},"Columns":${JSON.stringify(columns)},"Rows":[${texts.join(',')}]}`;
}

export function v1Management(table, options = {}) {
  return `{"Tables":[${v1Table('Table_0', table, { dynamicAsText: true, ...options })}]}`;
}

const STATUS_SCHEMA =
  'Timestamp:datetime, Severity:int, SeverityName, StatusCode:int, StatusDescription, Count:int, RequestId:guid, ActivityId:guid, SubActivityId:guid, ClientActivityId';
const CONTENTS_SCHEMA = 'Ordinal:long, Kind, Name, Id, PrettyName';

export function v1Query(table, { now, clientRequestId, activityId, ...options }) {
  const id = randomUUID;
  const tables = [
    v1Table('Table_0', table, { dynamicAsText: true, ...options }),
    v1Table('Table_1', tableOf('Value', [[VISUALIZATION]]), {}),
    v1Table(
      'Table_2',
      tableOf(STATUS_SCHEMA, [
        [
          now,
          4,
          'Info',
          0,
          'Query completed successfully',
          1,
          activityId,
          activityId,
          activityId,
          clientRequestId,
        ],
      ]),
      {},
    ),
    v1Table(
      'Table_3',
      tableOf(CONTENTS_SCHEMA, [
        [0n, 'QueryResult', 'PrimaryResult', id(), ''],
        [1n, 'QueryProperties', '@ExtendedProperties', id(), ''],
        [2n, 'QueryStatus', 'QueryStatus', '00000000-0000-0000-0000-000000000000', ''],
      ]),
      {},
    ),
  ];
  return `{"Tables":[${tables.join(',')}]}`;
}

const VISUALIZATION =
  '{"Visualization":null,"Title":null,"XColumn":null,"Series":null,"YColumns":null,"AnomalyColumns":null,"XTitle":null,"YTitle":null,"XAxis":null,"YAxis":null,"Legend":null,"YSplit":null,"Accumulate":false,"IsQuerySorted":false,"Kind":null,"Ymin":"NaN","Ymax":"NaN","Xmin":null,"Xmax":null}';
const COMPLETION_SCHEMA =
  'Timestamp:datetime, ClientRequestId, ActivityId:guid, SubActivityId:guid, ParentActivityId:guid, Level:int, LevelName, StatusCode:int, StatusCodeName, EventType:int, EventTypeName, Payload';

function v2Table(id, kind, name, table, texts) {
  const columns = table.columns.map((c) => ({ ColumnName: c.name, ColumnType: c.type }));
  return `{"FrameType":"DataTable","TableId":${id},"TableKind":"${kind}","TableName":"${name}","Columns":${JSON.stringify(columns)},"Rows":[${texts.join(',')}]}`;
}

export function v2Query(table, { now, clientRequestId, activityId, dynamicAsText = true, rowLimit }) {
  const { texts, problem } = rowTexts(table, { rowLimit, dynamicAsText });
  if (problem) texts.push(JSON.stringify({ OneApiErrors: [{ error: problem.error }] }));
  const properties = tableOf('TableId:int, Key, Value:dynamic', [[1, 'Visualization', VISUALIZATION]]);
  const line = (level, levelName, event, eventName, payload) => [
    now,
    clientRequestId,
    activityId,
    activityId,
    activityId,
    level,
    levelName,
    0,
    'S_OK (0)',
    event,
    eventName,
    payload,
  ];
  const completion = tableOf(COMPLETION_SCHEMA, [
    line(4, 'Info', 4, 'QueryInfo', '{"Count":1,"Text":"Query completed successfully"}'),
    line(
      6,
      'Stats',
      0,
      'QueryResourceConsumption',
      `{"QueryHash":"0","ExecutionTime":0.0,"dataset_statistics":[{"table_row_count":${texts.length}}]}`,
    ),
  ]);
  const end = problem
    ? {
        FrameType: 'DataSetCompletion',
        HasErrors: true,
        Cancelled: false,
        OneApiErrors: [{ error: problem.error }],
      }
    : { FrameType: 'DataSetCompletion', HasErrors: false, Cancelled: false };
  return `[${[
    '{"FrameType":"DataSetHeader","IsProgressive":false,"Version":"v2.0"}',
    v2Table(
      0,
      'QueryProperties',
      '@ExtendedProperties',
      properties,
      rowTexts(properties, { dynamicAsText: true }).texts,
    ),
    v2Table(1, 'PrimaryResult', 'PrimaryResult', table, texts),
    v2Table(
      2,
      'QueryCompletionInformation',
      'QueryCompletionInformation',
      completion,
      rowTexts(completion, {}).texts,
    ),
    JSON.stringify(end),
  ].join(',')}]`;
}
