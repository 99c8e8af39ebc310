// Runs a query of the subset against the store; gives { columns, rows }.
import { KustoError } from './errors.js';
import { parseQuery } from './kql.js';
import { apply, printRelation, tableRelation } from './operators.js';

export function runQuery(store, database, text) {
  const { source, operators } = parseQuery(text);
  let relation;
  if (source.kind === 'print') {
    relation = printRelation(source.items);
  } else {
    const home = source.database ?? database;
    store.database(home);
    const table = store.findTable(home, source.name);
    if (!table) {
      const where = operators[0] ? `'${operators[0].kind}' operator: ` : '';
      throw KustoError.semantic(
        `${where}Failed to resolve table or column expression named '${source.name}'`,
      );
    }
    relation = tableRelation(table);
  }
  for (const operator of operators) relation = apply(relation, operator);
  return relation;
}
