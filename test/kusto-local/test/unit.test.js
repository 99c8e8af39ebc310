// The parts that need no network: CSV, types, canonical text, queries, messages.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { canonicalValue, hashTable, jsonbText } from '../lib/canonical.js';
import { CsvReader } from '../lib/csv.js';
import { Faults } from '../lib/faults.js';
import { tokenize } from '../lib/lexer.js';
import { Loader } from '../lib/loader.js';
import { maskSecrets } from '../lib/mask.js';
import { decodeMessage, normalise } from '../lib/message.js';
import { runQuery } from '../lib/query.js';
import { v1Query, v2Query } from '../lib/result.js';
import { Store } from '../lib/schema.js';
import { formatDatetime, formatReal, formatTimespan, parserOf, toJson } from '../lib/types.js';

// Every way to cut the bytes into two chunks must give the same records.
function readCsv(text) {
  const bytes = Buffer.from(text);
  let expected = null;
  for (let cut = 0; cut <= bytes.length; cut += 1) {
    const records = [];
    const reader = new CsvReader((r) =>
      records.push(Array.from({ length: r.count }, (_, i) => (r.quoted(i) ? `q:${r.text(i)}` : r.text(i)))),
    );
    reader.push(bytes.subarray(0, cut));
    reader.push(bytes.subarray(cut));
    reader.finish();
    expected ??= records;
    assert.deepEqual(records, expected, `cut at ${cut}`);
  }
  return expected;
}

test('csv: records, quotes, line ends, and every place a chunk can end', () => {
  assert.deepEqual(readCsv('a,b\nc,d\n'), [
    ['a', 'b'],
    ['c', 'd'],
  ]);
  assert.deepEqual(readCsv('a,b\r\n"c","d"\r\n'), [
    ['a', 'b'],
    ['q:c', 'q:d'],
  ]);
  assert.deepEqual(readCsv('"x ""y"" z","1\r\n2,3",é\n'), [['q:x "y" z', 'q:1\r\n2,3', 'é']]);
  assert.deepEqual(readCsv(',,\n'), [['', '', '']]);
  assert.deepEqual(readCsv('a,'), [['a', '']]);
  assert.deepEqual(readCsv('"",""'), [['q:', 'q:']]);
  assert.deepEqual(readCsv('""\n""""\n'), [['q:'], ['q:"']]);
  assert.deepEqual(readCsv('last without end'), [['last without end']]);
  assert.deepEqual(readCsv(''), []);
});

test('csv: what is broken has the code of the service', () => {
  const read = (text) => () => {
    const reader = new CsvReader(() => {});
    reader.push(Buffer.from(text));
    reader.finish();
  };
  assert.throws(read('"open'), { code: 'Stream_ClosingQuoteMissing' });
  assert.throws(read('"a"b,c\n'), { code: 'BadRequest_UnexpectedCharacterInInputStream' });
  const found = [];
  const reader = new CsvReader(
    () => {},
    (kind) => found.push(kind),
  );
  reader.push(Buffer.from('a"b\n'));
  assert.deepEqual(found, ['stray_quote']);
});

const parse = (type, text) => parserOf(type)(text);

test('types: what is accepted and what would become null', () => {
  const good = [
    ['bool', 'true', true],
    ['bool', '0', false],
    ['int', '-2147483648', -2147483648],
    ['long', '9223372036854775807', 9223372036854775807n],
    ['long', '-9223372036854775808', -(2n ** 63n)],
    ['real', '1e-7', 1e-7],
    ['real', '-0', -0],
    ['real', 'NaN', NaN],
    ['real', '1.7976931348623157e308', Number.MAX_VALUE],
    ['decimal', '0012.3400', '12.34'],
    ['decimal', '-0.00', '0'],
    ['decimal', '1e-3', '0.001'],
    ['decimal', '1.5e3', '1500'],
    ['decimal', `${'9'.repeat(34)}`, '9'.repeat(34)],
    ['guid', '0E0F6F2A6A544A0E8A590F4F5B2D0002', '0e0f6f2a-6a54-4a0e-8a59-0f4f5b2d0002'],
    ['timespan', '1', 864_000_000_000n],
    ['timespan', '-10675199.02:48:05.4775808', -(2n ** 63n)],
    ['timespan', '23:59:59.9999999', 863_999_999_999n],
    ['timespan', '15s', 150_000_000n],
    ['dynamic', '{"a":1}', '{"a":1}'],
    ['dynamic', 'null', null],
    ['datetime', '0001-01-01', 0n],
    ['datetime', '9999-12-31T23:59:59.9999999Z', 3_155_378_975_999_999_999n],
    ['datetime', '1970-01-01T00:00:00', 621_355_968_000_000_000n],
    ['datetime', '1970-01-01 01:00:00+01:00', 621_355_968_000_000_000n],
    ['datetime', '2024-02-29', 638_447_616_000_000_000n],
  ];
  for (const [type, text, value] of good) assert.deepEqual(parse(type, text), value, `${type} ${text}`);
  const bad = [
    ['bool', 'yes'],
    ['bool', ' true'],
    ['int', '2147483648'],
    ['int', '1.0'],
    ['long', '9223372036854775808'],
    ['long', ' 1'],
    ['real', '1e400'],
    ['real', 'inf'],
    ['real', '1,5'],
    ['decimal', '1'.repeat(35)],
    ['decimal', 'NaN'],
    ['decimal', '.'],
    ['guid', '0e0f6f2a'],
    ['datetime', '10000-01-01'],
    ['datetime', '0000-01-01'],
    ['datetime', '2023-02-29'],
    ['datetime', '01/13/1970'],
    ['datetime', 'infinity'],
    ['datetime', '2024-01-01T24:00:00'],
    ['datetime', '0044-03-15 BC'],
    ['timespan', '24:00:00'],
    ['timespan', '1 day'],
    ['timespan', '10675199.02:48:05.4775808'],
    ['dynamic', '{a:1}'],
  ];
  for (const [type, text] of bad) assert.equal(parse(type, text), undefined, `${type} ${text}`);
});

test('types: the text of results', () => {
  assert.equal(
    formatDatetime(parse('datetime', '2024-05-25T08:20:03.1234567Z')),
    '2024-05-25T08:20:03.1234567Z',
  );
  assert.equal(formatDatetime(0n), '0001-01-01T00:00:00.0000000Z');
  assert.equal(formatDatetime(3_155_378_975_999_999_999n), '9999-12-31T23:59:59.9999999Z');
  assert.equal(formatTimespan(-936_000_000_000n - 1n), '-1.02:00:00.0000001');
  assert.equal(formatTimespan(0n), '00:00:00');
  assert.deepEqual([1, 0.1, 1e21, 1e-7, NaN, -Infinity].map(formatReal), [
    '1.0',
    '0.1',
    '1E+21',
    '1E-7',
    'NaN',
    '-Infinity',
  ]);
  assert.equal(toJson('long', 2n ** 63n - 1n), '9223372036854775807');
  assert.equal(toJson('real', NaN), '"NaN"');
  assert.equal(toJson('dynamic', '{"a":1}', true), '"{\\"a\\":1}"');
  assert.equal(toJson('dynamic', '"text"', true), '"text"');
});

// The right sides are what PostgreSQL prints for these as jsonb.
test('canonical: dynamic is the text of jsonb', () => {
  const pairs = [
    ['{"bb":1,"a":[1,2.50,-0,1e2,1E-3],"a":null}', '{"a": null, "bb": 1}'],
    ['[1e2,1.50,-0,-0.00,1.5e3,12e-1,0.000]', '[100, 1.50, 0, 0.00, 1500, 1.2, 0.000]'],
    ['{"zz":1,"é":2,"a":{}}', '{"a": {}, "zz": 1, "é": 2}'],
    ['"a\\u0001\\n\\"\\/é\\ud83d\\ude00"', '"a\\u0001\\n\\"/é😀"'],
    ['[]', '[]'],
    ['true', 'true'],
    [' [ null , false ] ', '[null, false]'],
    ['12345678901234567890123', '12345678901234567890123'],
  ];
  for (const [text, expected] of pairs) assert.equal(jsonbText(text), expected);
});

test('canonical: reals are bits, nulls are marked', () => {
  assert.equal(canonicalValue('real', 0.1), '3fb999999999999a');
  assert.equal(canonicalValue('real', -0), '8000000000000000');
  assert.equal(canonicalValue('real', NaN), '7ff8000000000000');
  assert.equal(canonicalValue('long', null), '\\N');
  assert.equal(canonicalValue('timespan', 15_000_000n), '15000000');
});

function storeWith(schema, csv, options) {
  const store = new Store(['db']);
  const columns = schema.split(',').map((c) => {
    const [name, type] = c.trim().split(':');
    return { name, type };
  });
  const table = store.createTable('db', 'T', columns);
  const loader = new Loader(table, options);
  loader.push(Buffer.from(csv));
  table.extents.push(loader.finish());
  return { store, table };
}

test('canonical: the hash does not depend on the order, but on every row', async () => {
  const hash = async (csv) => hashTable(storeWith('a:long,b:string', csv).table);
  const base = await hash('1,"x"\n2,"y"\n');
  assert.deepEqual(await hash('2,"y"\n1,"x"\n'), base);
  assert.notDeepEqual(await hash('2,"y"\n1,"z"\n'), base);
  assert.notDeepEqual(await hash('1,"x"\n2,"y"\n2,"y"\n'), base);
  // md5('1' || chr(31) || 'x') and md5('2' || chr(31) || 'y'), 15 digits each
  assert.deepEqual(base, { rows: 2, hash: '903891475922799509' });
});

const CITIES =
  '1,"Oslo",0.7,2020-01-01,true,"{""k"":{""n"":5}}"\n2,"Rome",2.8,2021-01-01,false,\n3,"",,2022-01-01,,"[1,2]"\n4,"New York",8.3,,true,"""x"""\n';
const { store } = storeWith('id:long,name:string,pop:real,at:datetime,ok:bool,bag:dynamic', CITIES);

function rowsOf(kql) {
  const result = runQuery(store, 'db', kql);
  return [...result.rows()].map((row) => row.map((v, i) => JSON.parse(toJson(result.columns[i].type, v))));
}

test('kql: operators', () => {
  const cases = [
    ['T | count', [[4]]],
    ['T | take 2 | project id', [[1], [2]]],
    ['T | where id >= 3 and name != "" | project name', [['New York']]],
    ["['T'] | where name has 'york' | project id", [[4]]],
    ["T | where name contains 'O' | project id | sort by id asc", [[1], [2], [4]]],
    ["T | where name startswith 'n' or name endswith 'O' | project id", [[1], [4]]],
    ['T | where isnull(pop) | project id', [[3]]],
    ['T | where isempty(name) | count', [[1]]],
    [
      'T | where pop > 1 | summarize n = count(), sum(id), avg(pop) by ok | sort by n desc, ok asc',
      [
        [false, 1, 2, 2.8],
        [true, 1, 4, 8.3],
      ],
    ],
    ['T | summarize dcount(ok), min(at), max(name)', [[2, '2020-01-01T00:00:00.0000000Z', 'Rome']]],
    ['T | top 1 by pop', [[4, 'New York', 8.3, null, true, 'x']]],
    ['T | order by pop asc | project id', [[3], [1], [2], [4]]],
    ['T | order by pop | project id', [[4], [2], [1], [3]]],
    ['T | extend twice = id * 2, half = pop / 2 | where id == 1 | project twice, half', [[2, 0.35]]],
    ['T | where at between (datetime(2020-06-01) .. datetime(2021-06-01)) | project id', [[2]]],
    ['T | where bag.k.n == 5 | project id, n = bag.k.n', [[1, 5]]],
    ['T | where id in (1, 4) | project-keep id', [[1], [4]]],
    ['T | distinct ok | count', [[3]]],
    ['T | project-away name, pop, at, ok, bag | take 1', [[1]]],
    ['T | project-rename nr = id | project nr | take 1', [[1]]],
    ['T | where not(ok) | project id', [[2]]],
    [
      'T | where id == 1 | project strcat(name, "-", tostring(id)), strlen(name), toupper(name)',
      [['Oslo-1', 4, 'OSLO']],
    ],
    ['print x = 1 + 2 * 3, 7 / 2, 7.0 / 2, "a" =~ "A", -5 % 3', [[7, 3, 3.5, true, -2]]],
    [
      "print datetime(2024-01-02) - datetime(2024-01-01), 1d + 2h, @\"a\\b\", 'it\\'s'",
      [['1.00:00:00', '1.02:00:00', 'a\\b', "it's"]],
    ],
    [
      'T | getschema | project ColumnName, ColumnType | take 2',
      [
        ['id', 'long'],
        ['name', 'string'],
      ],
    ],
    ['T // a comment\n| where at > datetime(2020-12-31)\n| count', [[2]]],
  ];
  for (const [kql, expected] of cases) assert.deepEqual(rowsOf(kql), expected, kql);
});

test('kql: mistakes are told as the service tells them', () => {
  const failing = (kql) => {
    try {
      [...runQuery(store, 'db', kql).rows()];
    } catch (error) {
      return error;
    }
    return assert.fail(`no error: ${kql}`);
  };
  assert.match(
    failing('Nope | count').detail,
    /SEM0100: 'count' operator: Failed to resolve table or column expression named 'Nope'/,
  );
  assert.match(failing('T | where x == 1').detail, /Failed to resolve column or scalar expression named 'x'/);
  assert.match(failing('T | explode').detail, /SYN0002/);
  assert.match(failing('T | where').detail, /Syntax error/);
  assert.match(failing("T | where name == 'open").detail, /string literal is not closed/);
  assert.match(failing('T | project nosuch(1)').detail, /Unknown function/);
  assert.equal(failing('T | where id == "x"').code, 'General_BadRequest');
});

test('kql: obfuscated and multi-line string literals', () => {
  const values = tokenize('h\'secret\' ```two\nlines``` "tab\\t\\u00e9"')
    .filter((t) => t.kind === 'string')
    .map((t) => t.value);
  assert.deepEqual(values, ['secret', 'two\nlines', 'tab\té']);
});

test('results: a result that is too large says so inside the 200', () => {
  const table = runQuery(store, 'db', 'T | project id');
  const context = { now: 0n, clientRequestId: 'x', activityId: 'y', rowLimit: 2 };
  const frames = JSON.parse(v2Query(table, context));
  const primary = frames.find((f) => f.TableKind === 'PrimaryResult');
  assert.equal(primary.Rows.length, 3);
  assert.match(primary.Rows[2].OneApiErrors[0].error['@message'], /E_QUERY_RESULT_SET_TOO_LARGE/);
  assert.equal(frames.at(-1).HasErrors, true);
  assert.match(
    JSON.parse(v1Query(table, context)).Tables[0].Rows[2].Exceptions[0],
    /E_QUERY_RESULT_SET_TOO_LARGE/,
  );
});

test('loader: a mapping with order, constant and line number; missing columns', () => {
  const mapping = [
    { column: 'b', ordinal: 0, constant: null, transform: null },
    { column: 'a', ordinal: null, constant: '7', transform: null },
    { column: 'n', ordinal: null, constant: null, transform: 'sourcelinenumber' },
  ];
  const { table } = storeWith('a:long,b:string,n:long,z:string,y:real', '"x"\n"y"\n', { mapping });
  const rows = [0, 1].map((r) => table.columns.map((c, i) => table.extents[0].get(i, r, c.type)));
  assert.deepEqual(rows, [
    [7n, 'x', 1n, '', null],
    [7n, 'y', 2n, '', null],
  ]);
});

test('loader: JSON that is none is stored as a string, and told', () => {
  const found = [];
  const { table } = storeWith('d:dynamic', '"{x"\n', { strict: true, report: (kind) => found.push(kind) });
  assert.equal(table.extents[0].get(0, 0, 'dynamic'), '"{x"');
  assert.deepEqual(found, ['dynamic_not_json']);
});

test('message: read leniently, as the service does', () => {
  const text = Buffer.from(
    JSON.stringify({
      id: 'i',
      BLOBPATH: 'b',
      rawDataSize: '12',
      databasename: 'd',
      tableName: 't',
      reportLevel: 'FailuresAndSuccesses',
      ReportMethod: 'Table',
      flushImmediately: 'true',
      ingestionStatusInTable: { tableConnectionString: 'u', partitionKey: 'p', rowKey: 'r' },
      additionalProperties: {},
    }),
  ).toString('base64');
  const m = normalise(decodeMessage(text));
  assert.deepEqual(
    [m.blobPath, m.rawDataSize, m.reportLevel, m.reportMethod, m.flushImmediately, m.retainBlob],
    ['b', 12, 2, 1, true, false],
  );
  assert.deepEqual(m.status, { url: 'u', partitionKey: 'p', rowKey: 'r' });
  assert.throws(() => decodeMessage('x'.repeat(65_537)), /64 KiB/);
  assert.throws(() => decodeMessage('W10='), /not a JSON object/);
});

test('mask: no secret survives', () => {
  const text = maskSecrets(
    'x?sv=1&sig=abc%2Fd&se=2 \'https://h/c?se=1&sig=zzz\' Bearer aaa.bbb.ccc client_secret=s3cret&x=1 {"access_token":"tttt"} eyJhbGci.eyJz.sig_1',
  );
  for (const secret of ['abc%2Fd', 'zzz', 'bbb', 's3cret', 'tttt', 'eyJz', 'sig_1'])
    assert.ok(!text.includes(secret), `${secret} in ${text}`);
});

test('faults: the first rule that still has something to do', () => {
  const faults = new Faults();
  faults.add([
    { match: { path: '^/a' }, times: 1, action: { status: 1 } },
    { match: { method: 'get' }, times: -1, skip: 1, action: { status: 2 } },
  ]);
  const take = (path) =>
    faults.take({ service: 'engine', method: 'GET', path, query: '', body: '' })?.status ?? null;
  assert.deepEqual([take('/a'), take('/a'), take('/b'), take('/b')], [1, null, 2, 2]);
});
