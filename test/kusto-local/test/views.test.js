// Functions, materialized views, and what of the query language they need:
// learn.microsoft.com/kusto/query, .../management/materialized-views.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Running } from './harness.js';

let service;
before(async () => {
  service = await Running.start('--database', 'db');
});
after(() => service.stop());

// The rows of a command or a query.
async function run(csl) {
  const [table] = (await service.post('/command', { db: 'db', csl })).Tables;
  return table.Rows;
}

async function columns(csl) {
  return (await service.post('/command', { db: 'db', csl })).Tables[0].Columns.map((c) => c.ColumnName);
}

const refuses = (csl, why) => assert.rejects(run(csl), why, csl);

const ingest = (table, csv) => run(`.ingest inline into table ${table} <| ${csv}`);

async function fresh() {
  await service.post('/reset');
  await run('.create table T (k: long, s: string, n: long, bag: dynamic)');
  await ingest('T', '1,"a",10,\n1,"",30,\n2,"b",,\n2,"c",,\n3,"",5,"{""x"":1}"\n1,"d",20,\n');
}

test('arg_max, arg_min: the whole record, nulls never win, the first of equals stays', async () => {
  await fresh();
  assert.deepEqual(await columns('T | summarize arg_max(n, *) by k'), ['k', 'n', 's', 'bag']);
  assert.deepEqual(await run('T | summarize arg_max(n, *) by k | project k, n, s | sort by k asc'), [
    [1, 30, ''],
    [2, null, 'b'],
    [3, 5, ''],
  ]);
  assert.deepEqual(await run('T | summarize arg_min(n, s) by k | sort by k asc'), [
    [1, 10, 'a'],
    [2, null, 'b'],
    [3, 5, ''],
  ]);
  assert.deepEqual(await columns('T | summarize best = arg_max(n, s, k), count()'), [
    'best',
    's',
    'k',
    'count_',
  ]);
  assert.deepEqual(await columns('T | summarize arg_max(k, *) by id = k'), ['id', 'k', 's', 'n', 'bag']);
  await refuses('T | summarize arg_max(n) by k', /expects at least 2/);
  await refuses('T | summarize max(n) by bag', /dynamic/);
  await refuses('T | summarize arg_max(*, n) by k', /not expected here/);
});

test('take_any: one record whole, or a value that is not empty', async () => {
  await fresh();
  assert.deepEqual(await columns('T | summarize take_any(*) by s, k'), ['s', 'k', 'n', 'bag']);
  assert.deepEqual(await run('T | summarize take_any(*) by k | where k == 1 | project k, s, n'), [
    [1, 'a', 10],
  ]);
  assert.deepEqual(await run('T | where k == 2 | summarize take_any(n, s)'), [[null, 'b']]);
  assert.deepEqual(await run('T | where k == 3 | summarize take_any(s), take_any(bag)'), [['', '{"x":1}']]);
  assert.deepEqual(await run('T | where k == 1 and n > 10 | summarize take_any(s)'), [['d']]);
});

test('let: values, rows, functions, and toscalar', async () => {
  await fresh();
  assert.deepEqual(await run('let low = 15; T | where n > low | project n'), [[30], [20]]);
  assert.deepEqual(
    await run('let A = T | where k == 1; let m = toscalar(A | summarize max(n)); A | where n == m | count'),
    [[1]],
  );
  assert.deepEqual(await run('let f = (x: long) { T | where k == x }; f(3) | project n;'), [[5]]);
  assert.deepEqual(await run('let f = () { T | where k == 3 }; union f, (f() | extend k = 9) | project k'), [
    [3],
    [9],
  ]);
  assert.deepEqual(await run('T | where n < toscalar(T | where k == 9 | project n) | count'), [[0]]);
  assert.deepEqual(
    await run('T | where coalesce(toscalar(T | where k == 9 | summarize max(n)), -1) < n | count'),
    [[4]],
  );
  assert.deepEqual(await run('let K = T | where n > 20 | project k; T | where k !in (K) | project k'), [
    [2],
    [2],
    [3],
  ]);
  assert.deepEqual(
    await run('T | where k in ((T | where isnull(n) | project k)) and isnotempty(s) | count'),
    [[2]],
  );
  assert.deepEqual(await run('print x = iff(isnotnull(toscalar(T | take 1 | project n)), "yes", "no")'), [
    ['yes'],
  ]);
  await refuses('let x = 1; x | count', /Failed to resolve/);
  await refuses('let f = (x: long) { T | where k == x }; f("a")', /of type long/);
  await refuses('let f = (x: long) { T }; f()', /expects 1/);
  await refuses('T | where n > toscalar(5)', /tabular/);
});

test('union and join', async () => {
  await fresh();
  await run('.create table U (k: long, t: string)');
  await ingest('U', '1,"one"\n1,"uno"\n4,"four"\n');
  const cases = [
    ['union T, U | where k == 4 | project k, s, n, t', [[4, '', null, 'four']]],
    ['U | union kind=inner T | summarize count()', [[9]]],
    [
      'union withsource=from U, T | summarize count() by from | sort by from asc',
      [
        ['T', 6],
        ['U', 3],
      ],
    ],
    ['T | join kind=leftanti U on k | distinct k | sort by k asc', [[2], [3]]],
    ['T | join kind=leftsemi U on k | count', [[3]]],
    ['T | join kind=inner U on $left.k == $right.k | count', [[6]]],
    [
      'T | join U on k | project k, k1, s, t',
      [
        [1, 1, 'a', 'one'],
        [1, 1, 'a', 'uno'],
      ],
    ],
    [
      'T | where k == 3 | join kind=leftouter (U | where t == "uno") on k | project k, k1, t',
      [[3, null, '']],
    ],
  ];
  for (const [kql, expected] of cases) assert.deepEqual(await run(kql), expected, kql);
  await refuses('T | join kind=leftanti U on nope', /left side/);
  await refuses('T | join kind=fullouter U on k', /not one that kusto-local knows/);
  await refuses('T | join U on $left.k == $right.t', /cannot be joined/);
});

test('functions are stored, shown, altered and dropped', async () => {
  await fresh();
  await run(`.create-or-alter function with (docstring = 'rows of one key', folder = 'x') ['of key'](x: long) {
    // a brace in a string and one of its own: "}"
    T | where k == x and s != "}" }`);
  assert.deepEqual(await run("['of key'](2) | count"), [[2]]);
  assert.deepEqual(await run('.show functions | project Name, Parameters, Folder'), [
    ['of key', '(x:long)', 'x'],
  ]);
  await run('.create-or-alter function Small() { let m = toscalar(T | summarize max(n)); T | where n < m }');
  assert.deepEqual(await run('Small | count'), [[3]]);
  assert.deepEqual(await run('Small() | count'), [[3]]);
  await run('.create function ifnotexists Small() { T }');
  assert.deepEqual(await run('Small | count'), [[3]]);
  await run('.alter function Small() { T | take 1 }');
  assert.deepEqual(await run('Small | count'), [[1]]);
  await run('.create-or-alter function T() { table("T") | where k == 3 }');
  assert.deepEqual(await run('T | count'), [[1]]);
  await run('.drop function T');
  await refuses('.create function Small() { T }', /already exists/);
  await refuses('.create-or-alter function Bad() { Nope | count }', /Failed to resolve/);
  await refuses('.create-or-alter function Bad() { T | where }', /expected/);
  await refuses('.create-or-alter function Bad() { T', /closing bracket/);
  await refuses('.create-or-alter function with (colour = "red") Bad() { T }', /not supported/);
  await refuses('.alter function Bad() { T }', /not found/);
  await run('.create-or-alter function with (skipvalidation = true) Loop() { Loop() }');
  await refuses('Loop', /too deeply/);
  await run('.drop function Small');
  await refuses('Small | count', /Failed to resolve/);
  await refuses('.drop function Small', /not found/);
});

test('a materialized view: from now on, or of all', async () => {
  await fresh();
  await run('.create materialized-view Now on table T { T | summarize arg_max(n, *) by k }');
  await run(
    '.create async materialized-view with (backfill = true, docString = "all") Old on table T\n{\n  T\n  | summarize arg_max(n, *) by k\n}',
  );
  assert.deepEqual(await run('Now | count'), [[0]]);
  assert.deepEqual(await run("materialized_view('Old') | count"), [[3]]);
  await ingest('T', '1,"z",99,\n');
  assert.deepEqual(await run('Now | project k, n, s'), [[1, 99, 'z']]);
  assert.deepEqual(await run('Old | where k == 1 | project k, n, s'), [[1, 99, 'z']]);
  await run('.create-or-alter function Current() { materialized_view("Old") | where n > 50 }');
  assert.deepEqual(await run('Current | count'), [[1]]);
  assert.deepEqual(await run('.show materialized-views | project Name, SourceTable, DocString'), [
    ['Now', 'T', ''],
    ['Old', 'T', 'all'],
  ]);
  await run('.create ifnotexists materialized-view Now on table T { T | summarize take_any(*) by n }');
  assert.deepEqual(await columns('Now'), ['k', 'n', 's', 'bag']);
  await run('.drop materialized-view Now');
  await refuses('Now', /Failed to resolve/);
});

test('a materialized view keeps its columns unless autoUpdateSchema', async () => {
  await fresh();
  const query = 'on table T { T | summarize arg_max(n, *) by k }';
  await run(`.create materialized-view Fixed ${query}`);
  await run(`.create-or-alter materialized-view with (autoUpdateSchema = true) Growing ${query}`);
  await run('.create-merge table T (more: string)');
  assert.deepEqual(await columns('Fixed'), ['k', 'n', 's', 'bag']);
  assert.deepEqual(await columns('Growing'), ['k', 'n', 's', 'bag', 'more']);
  await ingest('T', '8,"x",1,,"m"\n');
  assert.deepEqual(await run('Growing | project k, more'), [[8, 'm']]);
  await run(`.alter materialized-view Fixed ${query}`);
  assert.deepEqual(await run('Fixed | project k, more'), [[8, 'm']]);
});

test('a view over a view that takes any', async () => {
  await fresh();
  await run('.create materialized-view Once on table T { T | summarize take_any(*) by k, n }');
  await run(
    '.create materialized-view Latest on materialized-view Once { Once | summarize arg_max(n, s) by k }',
  );
  await ingest('T', '1,"z",99,\n1,"z",99,\n1,"y",5,\n');
  assert.deepEqual(await run('Once | count'), [[2]]);
  assert.deepEqual(await run('Latest'), [[1, 99, 'z']]);
  await refuses(
    '.create materialized-view No on materialized-view Latest { Latest | summarize count() by k }',
    /take_any/,
  );
});

test('a definition that the service refuses is refused', async () => {
  await fresh();
  await run('.create table U (k: long)');
  await run('.create materialized-view V on table T { T | summarize arg_max(n, *) by k }');
  const wrong = [
    ['T | where k > 1', /last operator/],
    ['T | summarize arg_max(n, *) by k | where n > 1', /last operator/],
    ['T | summarize by k', /needs an aggregation/],
    ['T | summarize arg_max(n, *)', /group by/],
    ['T | sort by n asc | summarize take_any(*) by k', /'sort' is not supported/],
    ['T | distinct k | summarize count() by k', /'distinct' is not supported/],
    ['T | union U | summarize count() by k', /'union' is not supported/],
    ['U | summarize count() by k', /must read 'T'/],
    ["database('db').T | summarize count() by k", /cross-database/],
    ['T | where n > toscalar(U | count) | summarize count() by k', /toscalar/],
    ['T | where k in (U) | summarize count() by k', /one table/],
    ['T | extend t = now() | summarize arg_max(t, *) by k', /now/],
    ['T | summarize x = max(n) / min(n) by k', /composite/],
    ['T | summarize arg_max(n, *) by bag', /dynamic/],
    ['T | summarize arg_max(nope, *) by k', /Failed to resolve/],
    ['let x = 1; T | summarize count() by k', /let/],
  ];
  for (const [query, why] of wrong) await refuses(`.create materialized-view W on table T { ${query} }`, why);
  const good = 'on table T { T | summarize arg_max(n, *) by k }';
  await refuses(`.create materialized-view V ${good}`, /already exists/);
  await refuses(`.create materialized-view T ${good}`, /already exists/);
  await refuses(`.create materialized-view with (backfill = true) W ${good}`, /async/);
  await refuses(`.create-or-alter materialized-view with (backfill = true) V ${good}`, /backfill/);
  await refuses(`.create materialized-view with (color = 1) W ${good}`, /no property/);
  await refuses(`.alter materialized-view with (folder = "x") V ${good}`, /cannot be altered/);
  await refuses('.alter materialized-view V on table T { T | summarize arg_max(n, *) by s }', /group by/);
  await refuses(`.alter materialized-view W ${good}`, /not found/);
  await refuses('.create materialized-view W on table Nope { Nope | summarize count() by k }', /not found/);
  await refuses(
    '.create materialized-view with (lookback = 1h) W on table T { T | summarize arg_max(n, *), count() by k }',
    /lookback/,
  );
  await refuses(
    '.create materialized-view with (autoUpdateSchema = true) W on table T { T | summarize arg_max(n, s) by k }',
    /autoUpdateSchema/,
  );
  assert.deepEqual(await run('.show materialized-views | project Name'), [['V']]);
});
