// Runs a query of the subset against the store; gives { columns, rows }. A scope
// says what names mean: what let statements and parameters have bound, then the
// database's functions, tables and materialized views.
import { union } from './combine.js';
import { KustoError } from './errors.js';
import { compile } from './expression.js';
import { parseQuery } from './kql.js';
import { apply, printRelation, tableRelation } from './operators.js';

const DEPTH = 32;

export function runQuery(store, database, text) {
  return new Scope(store, database).run(parseQuery(text));
}

export class Scope {
  // tables: rows that stand for tables of these names.
  constructor(store, database, { bound = new Map(), tables = new Map(), depth = 0 } = {}) {
    Object.assign(this, { store, database, bound, tables, depth });
    if (depth > DEPTH) throw KustoError.semantic('functions call each other too deeply');
  }

  run({ lets = [], source, operators }) {
    const scope = lets.length ? new Scope(this.store, this.database, this.copy()) : this;
    for (const { name, value } of lets) scope.bound.set(name, scope.bind(value));
    let relation = scope.sourceRelation(source, operators[0]);
    for (const operator of operators) relation = apply(relation, operator, scope);
    return relation;
  }

  copy() {
    return { bound: new Map(this.bound), tables: this.tables, depth: this.depth };
  }

  // What a let statement's right side is: a function, rows, or a value.
  bind(value) {
    if (value.kind === 'lambda') return { lambda: value, scope: this };
    const relation = this.relation(value);
    return relation ? { relation } : { scalar: compile(value, [], 'let', this) };
  }

  // The compiled value behind a name; null when it is none.
  scalar(name) {
    return this.bound.get(name)?.scalar ?? null;
  }

  // The rows behind an expression; null when it is a value.
  relation(node) {
    switch (node.kind) {
      case 'subquery':
        return this.run(node.query);
      case 'name':
      case 'column':
        return this.named(node);
      case 'call':
        return this.called(node);
      default:
        return null;
    }
  }

  relations(sources) {
    return sources.map((s) => ({ name: s.name ?? 'union_arg', ...this.needed(s) }));
  }

  needed(source, operator) {
    const relation = this.relation(source);
    if (relation) return relation;
    const where = operator ? `'${operator.kind}' operator: ` : '';
    throw KustoError.semantic(`${where}Failed to resolve table or column expression named '${source.name}'`);
  }

  sourceRelation(source, operator) {
    if (source.kind === 'print') return printRelation(source.items, this);
    if (source.kind === 'union')
      return union(this.relations(source.sources), source.columns, source.withsource);
    return this.needed(source, operator);
  }

  named({ name, database = this.database }) {
    const isElsewhere = database !== this.database;
    const bound = isElsewhere ? null : this.bound.get(name);
    if (bound?.relation) return bound.relation;
    if (bound?.lambda) return this.invoke(bound.lambda, [], bound.scope);
    if (bound) return null;
    const home = this.store.database(database);
    const scope = isElsewhere ? new Scope(this.store, database, { depth: this.depth }) : this;
    if (home.functions.has(name)) return scope.invoke(home.functions.get(name), []);
    const table = scope.table(name);
    if (table) return table;
    return home.views.has(name) ? scope.view(name) : null;
  }

  table(name) {
    const stored = this.store.findTable(this.database, name);
    return this.tables.get(name) ?? (stored ? tableRelation(stored) : null);
  }

  called({ name, args }) {
    const text = args.length === 1 && args[0].type === 'string' ? args[0].text : null;
    if (name === 'table' && text !== null) return this.table(text);
    if (name === 'materialized_view' && text !== null) return this.view(text);
    if (name === 'materialize' && args.length === 1) return this.relation(args[0]);
    const bound = this.bound.get(name);
    if (bound) return bound.lambda ? this.invoke(bound.lambda, args, bound.scope) : null;
    const stored = this.store.database(this.database).functions.get(name);
    return stored ? this.invoke(stored, args) : null;
  }

  // A function's body sees its parameters and what its own definition saw.
  invoke({ parameters, body }, args, home = null) {
    if (args.length !== parameters.length)
      throw KustoError.semantic(`the function expects ${parameters.length} argument(s)`);
    const bound = new Map(home?.bound);
    parameters.forEach(({ name, type }, i) => {
      const scalar = compile(args[i], [], 'function', this);
      if (scalar.type !== type)
        throw KustoError.semantic(`the parameter '${name}' is of type ${type}, not ${scalar.type}`);
      bound.set(name, { scalar });
    });
    const scope = new Scope(this.store, this.database, { bound, depth: this.depth + 1 });
    return scope.run(parseQuery(body));
  }

  view(name) {
    const view = this.store.database(this.database).views.get(name);
    if (!view) throw KustoError.semantic(`Failed to resolve materialized view named '${name}'`);
    const isViewed = view.source.kind === 'materialized-view';
    const source = isViewed
      ? this.view(view.source.name)
      : tableRelation(this.store.table(this.database, view.source.name), {
          chosen: (extent) => !view.before.has(extent.id),
          width: view.width,
        });
    const tables = new Map([[view.source.name, source]]);
    return new Scope(this.store, this.database, { tables, depth: this.depth + 1 }).run(view.query);
  }
}
