// The operators that bring several sources of rows together: union and join.
import { KustoError } from './errors.js';
import { toText } from './types.js';

const nothing = (type) => (type === 'string' ? '' : null);

// Each relation has a name; learn.microsoft.com/kusto/query/union-operator
export function union(relations, kind, withsource) {
  const columns = [];
  for (const { columns: own } of relations) {
    for (const { name, type } of own) {
      const known = columns.find((c) => c.name === name);
      if (known && known.type !== type)
        throw KustoError.semantic(`kusto-local knows no union of '${name}' as ${known.type} and as ${type}`);
      if (!known) columns.push({ name, type });
    }
  }
  const has = (relation, name) => relation.columns.some((c) => c.name === name);
  const kept = columns.filter((c) => kind === 'outer' || relations.every((r) => has(r, c.name)));
  return {
    columns: [...(withsource ? [{ name: withsource, type: 'string' }] : []), ...kept],
    *rows() {
      for (const relation of relations) {
        const from = kept.map((c) => relation.columns.findIndex((own) => own.name === c.name));
        for (const row of relation.rows()) {
          const values = from.map((at, i) => (at < 0 ? nothing(kept[i].type) : row[at]));
          yield withsource ? [relation.name, ...values] : values;
        }
      }
    },
  };
}

function column(relation, name, side) {
  const at = relation.columns.findIndex((c) => c.name === name);
  if (at < 0)
    throw KustoError.semantic(
      `'join' operator: Failed to resolve column named '${name}' on the ${side} side`,
    );
  return at;
}

// The text of a row's key; null where a part of it is, which matches nothing here.
function keyReader(relation, places) {
  const types = places.map((at) => relation.columns[at].type);
  return (row) => {
    const parts = places.map((at, i) => (row[at] === null ? null : toText(types[i], row[at])));
    return parts.includes(null) ? null : JSON.stringify(parts);
  };
}

function grouped(rows, keyOf) {
  const groups = new Map();
  for (const row of rows) {
    const key = keyOf(row);
    if (key === null) continue;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  return groups;
}

function* firstOfEach(rows, keyOf) {
  const seen = new Set();
  for (const row of rows) {
    const key = keyOf(row);
    if (key === null || seen.has(key)) continue;
    seen.add(key);
    yield row;
  }
}

// A column of the right that the left has, too, gets a number.
function joinedColumns(left, right) {
  const columns = left.columns.map((c) => ({ ...c }));
  for (const { name, type } of right.columns) {
    let unique = name;
    for (let n = 1; columns.some((c) => c.name === unique); n += 1) unique = `${name}${n}`;
    columns.push({ name: unique, type });
  }
  return columns;
}

// learn.microsoft.com/kusto/query/join-operator
export function join(left, { flavor, right: source, keys }, scope) {
  const right = scope.relation(source);
  const leftPlaces = keys.map((k) => column(left, k.left, 'left'));
  const rightPlaces = keys.map((k) => column(right, k.right, 'right'));
  leftPlaces.forEach((at, i) => {
    const [a, b] = [left.columns[at].type, right.columns[rightPlaces[i]].type];
    if (a !== b || a === 'dynamic')
      throw KustoError.semantic(`'join' operator: the key types ${a} and ${b} cannot be joined`);
  });
  const leftKey = keyReader(left, leftPlaces);
  const matches = () => grouped(right.rows(), keyReader(right, rightPlaces));
  if (flavor === 'leftanti' || flavor === 'leftsemi') {
    return {
      columns: left.columns,
      *rows() {
        const found = matches();
        for (const row of left.rows()) if (found.has(leftKey(row)) === (flavor === 'leftsemi')) yield row;
      },
    };
  }
  const empty = right.columns.map((c) => nothing(c.type));
  return {
    columns: joinedColumns(left, right),
    *rows() {
      const found = matches();
      const rows = flavor === 'innerunique' ? firstOfEach(left.rows(), leftKey) : left.rows();
      for (const row of rows) {
        const partners = found.get(leftKey(row)) ?? (flavor === 'leftouter' ? [empty] : []);
        for (const partner of partners) yield [...row, ...partner];
      }
    },
  };
}
