// Tokens of the Kusto Query Language, and of management commands, as far as both
// share them: learn.microsoft.com/kusto/query/scalar-data-types/string for the
// string literals. A token is { kind, value, at, end }.
import { KustoError } from './errors.js';

const SPACE = /(?:\s|\/\/[^\n]*)+/y;
const NUMBER = /0x[0-9a-fA-F]+|\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+(?:\.(?!\d|\.|[A-Za-z_]))?/y;
const NAME = /[A-Za-z_$][\w$]*/y;
const UNIT = /(?:d|h|m|s|ms|microseconds?|ticks?)\b/y;
const SYMBOLS = [
  '=~',
  '!~',
  '==',
  '!=',
  '<>',
  '<=',
  '>=',
  '<|',
  '..',
  '|',
  '<',
  '>',
  '=',
  '(',
  ')',
  '[',
  ']',
  '{',
  '}',
  ',',
  '.',
  ':',
  ';',
  '+',
  '-',
  '*',
  '/',
  '%',
  '@',
  '!',
  '~',
];
const TYPED = /^(?:datetime|date|timespan|time|guid|real|double|long|int|bool|decimal|dynamic)$/;

export function tokenize(text) {
  const tokens = [];
  let at = 0;
  for (;;) {
    at = skip(SPACE, text, at);
    if (at >= text.length) break;
    const token = next(text, at);
    tokens.push(token);
    at = token.end;
  }
  tokens.push({ kind: 'end', value: '', at: text.length, end: text.length });
  return tokens;
}

function skip(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.test(text) ? pattern.lastIndex : at;
}

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text)?.[0] ?? null;
}

function next(text, at) {
  const string = stringAt(text, at);
  if (string) return { kind: 'string', at, ...string };
  const number = match(NUMBER, text, at);
  if (number !== null) {
    const unit = match(UNIT, text, at + number.length);
    const end = at + number.length + (unit?.length ?? 0);
    if (unit) return { kind: 'timespan', value: text.slice(at, end), at, end };
    return {
      kind: /[.eE]/.test(number) && !number.startsWith('0x') ? 'real' : 'long',
      value: number,
      at,
      end,
    };
  }
  const name = match(NAME, text, at);
  if (name !== null) return nameOrLiteral(text, at, name);
  const symbol = SYMBOLS.find((s) => text.startsWith(s, at));
  if (!symbol) throw KustoError.querySyntax(`unexpected character '${text[at]}' at position ${at}`);
  return { kind: 'symbol', value: symbol, at, end: at + symbol.length };
}

// datetime(2020-01-01) and its like hold raw text, not an expression.
function nameOrLiteral(text, at, name) {
  const end = at + name.length;
  if (TYPED.test(name)) {
    const open = skip(/\s*/y, text, end);
    if (text[open] === '(') {
      const close = closing(text, open);
      return { kind: 'typed', type: name, value: text.slice(open + 1, close).trim(), at, end: close + 1 };
    }
  }
  return { kind: 'name', value: name, at, end };
}

function closing(text, open) {
  let depth = 0;
  for (let i = open; i < text.length; i += 1) {
    const string = i > open ? stringAt(text, i) : null;
    if (string) {
      i = string.end - 1;
      continue;
    }
    if (text[i] === '(') depth += 1;
    else if (text[i] === ')' && --depth === 0) return i;
  }
  throw KustoError.querySyntax(`a parenthesis opened at position ${open} is never closed`);
}

const ESCAPES = { n: '\n', t: '\t', r: '\r', 0: '\0', a: '\x07', b: '\b', f: '\f', v: '\v' };

// 'x' "x" @'x' @"x" ```x``` and the h/H prefix of obfuscated literals.
function stringAt(text, at) {
  let i = at;
  if (/[hH]/.test(text[i]) && /['"@]/.test(text[i + 1] ?? '')) i += 1;
  if (text.startsWith('```', i)) {
    const close = text.indexOf('```', i + 3);
    if (close < 0) throw KustoError.querySyntax('a multi-line string literal is not closed');
    return { value: text.slice(i + 3, close), end: close + 3 };
  }
  const verbatim = text[i] === '@' && /['"]/.test(text[i + 1] ?? '');
  if (verbatim) i += 1;
  const quote = text[i];
  if (quote !== "'" && quote !== '"') return null;
  return verbatim ? verbatimString(text, i, quote) : escapedString(text, i, quote);
}

function verbatimString(text, at, quote) {
  let value = '';
  for (let i = at + 1; i < text.length; i += 1) {
    if (text[i] !== quote) value += text[i];
    else if (text[i + 1] === quote) value += text[i++];
    else return { value, end: i + 1 };
  }
  throw KustoError.querySyntax('a string literal is not closed');
}

function escapedString(text, at, quote) {
  let value = '';
  for (let i = at + 1; i < text.length; i += 1) {
    const c = text[i];
    if (c === quote) return { value, end: i + 1 };
    if (c === '\n') break;
    if (c !== '\\') {
      value += c;
      continue;
    }
    i += 1;
    const hex =
      text[i] === 'u' ? text.slice(i + 1, i + 5) : text[i] === 'x' ? text.slice(i + 1, i + 3) : null;
    if (hex !== null) {
      value += String.fromCharCode(parseInt(hex, 16));
      i += hex.length;
    } else value += ESCAPES[text[i]] ?? text[i];
  }
  throw KustoError.querySyntax('a string literal is not closed');
}
