// The canonical text of typed rows, and an order-independent hash of a table over
// it. README.md gives the SQL that recomputes both in PostgreSQL.
import { hash } from 'node:crypto';
import { setImmediate as breathe } from 'node:timers/promises';
import { formatDatetime } from './types.js';

const SEPARATOR = '\x1f';
const NULL_TEXT = '\\N';

const scratch = Buffer.alloc(8);

// PostgreSQL's encode(float8send(x), 'hex'): exact, and free of any printing.
function realBits(n) {
  if (Number.isNaN(n)) return '7ff8000000000000';
  scratch.writeDoubleBE(n);
  return scratch.toString('hex');
}

export function canonicalValue(type, value) {
  if (value === null) return NULL_TEXT;
  switch (type) {
    case 'bool':
      return value ? 'true' : 'false';
    case 'real':
      return realBits(value);
    case 'datetime':
      return formatDatetime(value);
    case 'dynamic':
      return jsonbText(value);
    default:
      return String(value);
  }
}

// The text that PostgreSQL's jsonb prints: keys by length and then by bytes, the
// last of equal keys, ", " and ": " between, numbers as numeric prints them.
export function jsonbText(text) {
  return print(new JsonReader(text).read());
}

function print(node) {
  if (Array.isArray(node)) return `[${node.map(print).join(', ')}]`;
  if (node instanceof Map) {
    const keys = [...node.keys()].map((key) => ({ key, bytes: Buffer.from(key) }));
    keys.sort((a, b) => a.bytes.length - b.bytes.length || Buffer.compare(a.bytes, b.bytes));
    return `{${keys.map(({ key }) => `${JSON.stringify(key)}: ${print(node.get(key))}`).join(', ')}}`;
  }
  if (node instanceof NumberText) return numericText(node.text);
  return JSON.stringify(node);
}

class NumberText {
  constructor(text) {
    this.text = text;
  }
}

function numericText(text) {
  if (/^(?:0|-?[1-9]\d*)$/.test(text)) return text;
  const [, sign, whole, fraction = '', exponent = '0'] = /^(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(
    text,
  );
  const shift = Number(exponent);
  const scale = Math.max(0, fraction.length - shift);
  let digits = whole + fraction + '0'.repeat(Math.max(0, shift - fraction.length));
  digits = digits.padStart(scale + 1, '0');
  const before = digits.slice(0, digits.length - scale).replace(/^0+(?=\d)/, '');
  const after = scale ? `.${digits.slice(digits.length - scale)}` : '';
  return (/[1-9]/.test(digits) ? sign : '') + before + after;
}

const WORD = /[^\s,\]}]+/y;
const CONSTANTS = { true: true, false: false, null: null };

// JSON with the numbers kept as they were written; the text is known to be valid.
class JsonReader {
  constructor(text) {
    Object.assign(this, { text, at: 0 });
  }

  read() {
    this.space();
    const c = this.text[this.at];
    if (c === '{') return this.object();
    if (c === '[') return this.array();
    if (c === '"') return this.string();
    return this.word();
  }

  space() {
    while (this.text.charCodeAt(this.at) <= 0x20) this.at += 1;
  }

  // Past the separator; true when the closing character came instead.
  closed(close) {
    this.space();
    const c = this.text[this.at];
    if (c === close || c === ',') this.at += 1;
    return c === close;
  }

  object() {
    const map = new Map();
    this.at += 1;
    while (!this.closed('}')) {
      this.space();
      const key = this.string();
      this.space();
      this.at += 1;
      map.set(key, this.read());
    }
    return map;
  }

  array() {
    const list = [];
    this.at += 1;
    while (!this.closed(']')) list.push(this.read());
    return list;
  }

  string() {
    const start = this.at;
    this.at += 1;
    while (this.text[this.at] !== '"') this.at += this.text[this.at] === '\\' ? 2 : 1;
    this.at += 1;
    return JSON.parse(this.text.slice(start, this.at));
  }

  word() {
    WORD.lastIndex = this.at;
    const [word] = WORD.exec(this.text);
    this.at += word.length;
    return word in CONSTANTS ? CONSTANTS[word] : new NumberText(word);
  }
}

// Sum over all rows of the first 60 bits of the row's MD5. Large tables take
// seconds, so the service goes on serving in between.
export async function hashTable(table) {
  let sum = 0n;
  let rows = 0;
  for (const extent of table.extents) {
    for (let r = 0; r < extent.rows; r += 1) {
      sum += BigInt(`0x${rowHash(table.columns, extent, r)}`);
      rows += 1;
      if (rows % 20_000 === 0) await breathe();
    }
  }
  return { rows, hash: String(sum) };
}

function rowHash(columns, extent, r) {
  let text = '';
  for (let i = 0; i < columns.length; i += 1) {
    const { type } = columns[i];
    if (i > 0) text += SEPARATOR;
    text += canonicalValue(type, extent.get(i, r, type));
  }
  return hash('md5', text).slice(0, 15);
}
