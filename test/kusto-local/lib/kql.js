// Parser of the query subset: let statements, a source of rows, then operators;
// see README.md. It makes a plain syntax tree; what names mean is query.js's
// business, types are expression.js's and operators.js's.
import { KustoError } from './errors.js';
import { tokenize } from './lexer.js';
import { typeNamed } from './types.js';

const COMPARISONS = new Set(['==', '!=', '<>', '<', '<=', '>', '>=', '=~', '!~']);
const WORD_OPERATORS = new Set([
  'has',
  'has_cs',
  'contains',
  'contains_cs',
  'startswith',
  'startswith_cs',
  'endswith',
  'endswith_cs',
  'hasprefix',
  'in',
  'between',
  'matches',
]);

const JOINS = new Set(['innerunique', 'inner', 'leftouter', 'leftanti', 'leftsemi']);

export class Parser {
  constructor(text) {
    this.text = text;
    this.tokens = tokenize(text);
    this.at = 0;
  }

  get token() {
    return this.tokens[this.at];
  }

  fail(what) {
    const { value, at } = this.token;
    throw KustoError.querySyntax(
      `${what} expected at position ${at}${value ? `, found '${value}'` : ', found the end'}`,
    );
  }

  is(value) {
    return (this.token.kind === 'symbol' || this.token.kind === 'name') && this.token.value === value;
  }

  take(value) {
    if (!this.is(value)) return false;
    this.at += 1;
    return true;
  }

  expect(value) {
    if (!this.take(value)) this.fail(`'${value}'`);
  }

  // name · ['any name'] · ["any name"]
  name() {
    if (this.token.kind === 'name') return this.tokens[this.at++].value;
    if (
      this.token.kind === 'symbol' &&
      this.token.value === '[' &&
      this.tokens[this.at + 1].kind === 'string'
    ) {
      const { value } = this.tokens[this.at + 1];
      this.at += 2;
      this.expect(']');
      return value;
    }
    return this.fail('a name');
  }

  // A name that may hold dashes, as operators do (project-away).
  operatorName() {
    let name = this.name();
    while (
      this.is('-') &&
      this.tokens[this.at + 1].kind === 'name' &&
      this.tokens[this.at + 1].at === this.token.end
    ) {
      this.at += 1;
      name += `-${this.name()}`;
    }
    return name;
  }

  // learn.microsoft.com/kusto/query/let-statement
  query() {
    const lets = [];
    while (this.is('let')) lets.push(this.letStatement());
    const query = { lets, ...this.tabular() };
    this.endOfQuery();
    return query;
  }

  letStatement() {
    this.expect('let');
    const name = this.name();
    this.expect('=');
    const value = this.isLambda() ? this.lambda() : this.argument();
    this.expect(';');
    return { name, value };
  }

  // (name: type, …) { … }
  isLambda() {
    if (!this.is('(')) return false;
    const close = this.closing(this.at);
    return this.tokens[close + 1].value === '{';
  }

  closing(at) {
    let depth = 0;
    for (let i = at; i < this.tokens.length; i += 1) {
      const { kind, value } = this.tokens[i];
      if (kind !== 'symbol') continue;
      if ('([{'.includes(value)) depth += 1;
      else if (')]}'.includes(value) && --depth === 0) return i;
    }
    return this.fail('a closing bracket');
  }

  lambda() {
    const parameters = this.parameters();
    return { kind: 'lambda', parameters, body: this.body() };
  }

  parameters() {
    this.expect('(');
    if (this.take(')')) return [];
    const parameters = this.list(() => {
      const name = this.name();
      this.expect(':');
      const typeName = this.name();
      const type = typeNamed(typeName);
      if (!type)
        throw KustoError.querySyntax(`a parameter of type '${typeName}' is not known to kusto-local`);
      return { name, type };
    });
    this.expect(')');
    return parameters;
  }

  // The text between braces.
  body() {
    const open = this.at;
    this.expect('{');
    this.at = this.closing(open);
    const text = this.text.slice(this.tokens[open].end, this.token.at);
    this.expect('}');
    return text.trim();
  }

  endOfQuery() {
    this.take(';');
    if (this.token.kind !== 'end') this.fail("'|' or the end");
  }

  tabular() {
    return { source: this.source(), operators: this.operators() };
  }

  pipeline() {
    const operators = this.operators();
    this.endOfQuery();
    return operators;
  }

  operators() {
    const operators = [];
    while (this.take('|')) operators.push(this.operator());
    return operators;
  }

  source() {
    if (this.token.kind === 'end') throw KustoError.querySyntax('the query is empty');
    if (this.take('print')) return { kind: 'print', items: this.namedList() };
    if (this.take('union')) return { kind: 'union', ...this.union() };
    return this.asSource(this.postfix());
  }

  // An expression that stands where rows are expected.
  asSource(node) {
    if (node.kind === 'column') return { kind: 'name', name: node.name };
    if (node.kind === 'call' || node.kind === 'subquery') return node;
    if (node.kind === 'member' && node.object.kind === 'call' && node.object.name === 'database') {
      const [argument] = node.object.args;
      if (argument?.type === 'string') return { kind: 'name', database: argument.text, name: node.key.text };
    }
    return this.fail('a table');
  }

  // Rows or a value: which of the two a name is cannot be told here.
  argument() {
    if (this.is('print') || this.is('union')) return { kind: 'subquery', query: this.tabular() };
    const node = this.expression();
    if (!this.is('|')) return node;
    return { kind: 'subquery', query: { source: this.asSource(node), operators: this.operators() } };
  }

  hints(known) {
    const found = {};
    while (
      this.token.kind === 'name' &&
      this.tokens[this.at + 1].value === '=' &&
      known.includes(this.token.value)
    ) {
      const name = this.name();
      this.expect('=');
      found[name] = this.tokens[this.at++].value;
    }
    return found;
  }

  // learn.microsoft.com/kusto/query/union-operator
  union() {
    const { kind = 'outer', withsource = null } = this.hints(['kind', 'withsource', 'isfuzzy']);
    if (kind !== 'outer' && kind !== 'inner')
      throw KustoError.querySyntax(`union: kind '${kind}' is not known`);
    return { columns: kind, withsource, sources: this.list(() => this.asSource(this.postfix())) };
  }

  // learn.microsoft.com/kusto/query/join-operator
  join() {
    const { kind = 'innerunique' } = this.hints(['kind']);
    if (!JOINS.has(kind))
      throw KustoError.querySyntax(`join: kind '${kind}' is not one that kusto-local knows`);
    const right = this.asSource(this.postfix());
    this.expect('on');
    return { kind: 'join', flavor: kind, right, keys: this.list(() => this.joinKey()) };
  }

  // name · $left.name == $right.name
  joinKey() {
    if (!this.is('$left') && !this.is('$right')) {
      const name = this.name();
      return { left: name, right: name };
    }
    const sides = {};
    const side = () => {
      const which = this.name();
      this.expect('.');
      sides[which] = this.name();
    };
    side();
    this.expect('==');
    side();
    if (!sides.$left || !sides.$right) this.fail('$left and $right');
    return { left: sides.$left, right: sides.$right };
  }

  string() {
    if (this.token.kind !== 'string') this.fail('a string literal');
    return this.tokens[this.at++].value;
  }

  operator() {
    const kind = this.operatorName();
    switch (kind) {
      case 'count':
      case 'getschema':
      case 'serialize':
        return { kind };
      case 'take':
      case 'limit':
        return { kind: 'take', n: this.expression() };
      case 'where':
      case 'filter':
        return { kind: 'where', test: this.expression() };
      case 'project':
      case 'extend':
        return { kind, items: this.namedList() };
      case 'project-away':
      case 'project-keep':
        return { kind, names: this.list(() => this.name()) };
      case 'project-rename':
        return { kind, items: this.namedList() };
      case 'distinct':
        return this.take('*') ? { kind, items: null } : { kind, items: this.namedList() };
      case 'sort':
      case 'order':
        this.expect('by');
        return { kind: 'sort', keys: this.sortKeys() };
      case 'top': {
        const n = this.expression();
        this.expect('by');
        return { kind, n, keys: this.sortKeys() };
      }
      case 'summarize':
        return this.summarize();
      case 'join':
        return this.join();
      case 'union':
        return { kind, ...this.union() };
      default:
        throw KustoError.querySyntax(`the operator '${kind}' is not one that kusto-local knows`);
    }
  }

  summarize() {
    const aggregates = this.is('by') || this.is('|') || this.token.kind === 'end' ? [] : this.namedList();
    const by = this.take('by') ? this.namedList() : [];
    return { kind: 'summarize', aggregates, by };
  }

  sortKeys() {
    return this.list(() => {
      const expression = this.expression();
      const ascending = this.take('asc');
      if (!ascending) this.take('desc');
      let nullsFirst = ascending;
      if (this.take('nulls')) {
        nullsFirst = this.take('first');
        if (!nullsFirst) this.expect('last');
      }
      return { expression, ascending, nullsFirst };
    });
  }

  list(item) {
    const items = [item()];
    while (this.take(',')) items.push(item());
    return items;
  }

  namedList() {
    return this.list(() => this.named());
  }

  // name = expression · expression
  named() {
    const mark = this.at;
    if (this.token.kind === 'name' || this.is('[')) {
      const isNamed = this.token.kind === 'name' || this.tokens[this.at + 1].kind === 'string';
      if (isNamed) {
        const name = this.name();
        if (this.take('=')) return { name, expression: this.expression() };
        this.at = mark;
      }
    }
    return { name: null, expression: this.expression() };
  }

  expression() {
    let left = this.conjunction();
    while (this.take('or')) left = { kind: 'or', left, right: this.conjunction() };
    return left;
  }

  conjunction() {
    let left = this.comparison();
    while (this.take('and')) left = { kind: 'and', left, right: this.comparison() };
    return left;
  }

  comparison() {
    const left = this.additive();
    const { kind, value } = this.token;
    if (kind === 'symbol' && COMPARISONS.has(value)) {
      this.at += 1;
      return { kind: 'compare', operator: value === '<>' ? '!=' : value, left, right: this.additive() };
    }
    const negated = kind === 'symbol' && value === '!' && WORD_OPERATORS.has(this.tokens[this.at + 1].value);
    if (negated) this.at += 1;
    const word = this.token;
    if (word.kind !== 'name' || !WORD_OPERATORS.has(word.value)) return left;
    this.at += 1;
    return this.wordOperator(word.value, negated, left);
  }

  wordOperator(operator, negated, left) {
    let node;
    if (operator === 'in') {
      const ignoreCase = this.token.value === '~' && this.take('~');
      this.expect('(');
      node = { kind: 'in', ignoreCase, left, items: this.list(() => this.argument()) };
      this.expect(')');
    } else if (operator === 'between') {
      this.expect('(');
      const low = this.additive();
      this.expect('..');
      node = { kind: 'between', left, low, high: this.additive() };
      this.expect(')');
    } else {
      if (operator === 'matches') this.expect('regex');
      node = { kind: 'text', operator, left, right: this.additive() };
    }
    return negated ? { kind: 'not', operand: node } : node;
  }

  additive() {
    let left = this.multiplicative();
    while (this.is('+') || this.is('-')) {
      const operator = this.tokens[this.at++].value;
      left = { kind: 'arithmetic', operator, left, right: this.multiplicative() };
    }
    return left;
  }

  multiplicative() {
    let left = this.unary();
    while (this.is('*') || this.is('/') || this.is('%')) {
      const operator = this.tokens[this.at++].value;
      left = { kind: 'arithmetic', operator, left, right: this.unary() };
    }
    return left;
  }

  unary() {
    if (this.take('-')) return { kind: 'negate', operand: this.unary() };
    if (this.take('+')) return this.unary();
    return this.postfix();
  }

  postfix() {
    let node = this.primary();
    for (;;) {
      if (this.take('.'))
        node = { kind: 'member', object: node, key: { kind: 'literal', type: 'string', text: this.name() } };
      else if (this.take('[')) {
        node = { kind: 'member', object: node, key: this.expression() };
        this.expect(']');
      } else return node;
    }
  }

  primary() {
    const token = this.token;
    switch (token.kind) {
      case 'string':
      case 'long':
      case 'real':
      case 'timespan':
        this.at += 1;
        return { kind: 'literal', type: token.kind, text: token.value };
      case 'typed':
        this.at += 1;
        return { kind: 'literal', type: token.type, text: token.value, typed: true };
      case 'symbol':
        if (token.value === '(') {
          this.at += 1;
          const inner = this.argument();
          this.expect(')');
          return inner;
        }
        if (token.value === '[') return this.nameOrCall();
        return this.fail('an expression');
      case 'name':
        return this.nameOrCall();
      default:
        return this.fail('an expression');
    }
  }

  nameOrCall() {
    const isQuoted = this.is('[');
    const name = this.name();
    if (isQuoted && !this.is('(')) return { kind: 'column', name };
    if (name === 'true' || name === 'false') return { kind: 'literal', type: 'bool', text: name };
    if (!this.take('(')) return { kind: 'column', name };
    const star = () => (this.is('*') && this.take('*') ? { kind: 'star' } : this.argument());
    const args = this.is(')') ? [] : this.list(star);
    this.expect(')');
    return { kind: 'call', name, args };
  }
}

export function parseQuery(text) {
  return new Parser(text).query();
}
