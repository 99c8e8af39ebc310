// RFC 4180, strictly and in a stream: records may span chunks, fields may span
// lines, and the reader learns of each field whether it was quoted. Bytes stay
// bytes until a field is asked for, so nothing is sliced into objects up front.
import { isUtf8 } from 'node:buffer';

const [COMMA, QUOTE, CR, LF] = [0x2c, 0x22, 0x0d, 0x0a];

// Kusto's limit of a single field or record.
export const RECORD_LIMIT = 64 * 1024 * 1024;

export class CsvError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

// The fields of the current record; reused for every record.
export class Record {
  constructor() {
    this.starts = [];
    this.ends = [];
    this.flags = [];
    this.count = 0;
    this.bytes = null;
    this.number = 0;
  }

  begin(bytes) {
    this.bytes = bytes;
    this.count = 0;
  }

  add(start, end, flag) {
    this.starts[this.count] = start;
    this.ends[this.count] = end;
    this.flags[this.count] = flag;
    this.count += 1;
  }

  quoted(i) {
    return this.flags[i] > 0;
  }

  size(i) {
    return this.ends[i] - this.starts[i];
  }

  isEmpty(i) {
    return this.ends[i] === this.starts[i];
  }

  // Invalid UTF-8 becomes U+FFFD, as in the service.
  text(i) {
    const text = this.bytes.toString('utf8', this.starts[i], this.ends[i]);
    return this.flags[i] === 2 ? text.replaceAll('""', '"') : text;
  }

  validUtf8(from, to) {
    return isUtf8(this.bytes.subarray(from, to));
  }
}

// Feed it chunks with push() and the last one with finish(); it calls onRecord
// with the one reused Record for every record.
export class CsvReader {
  // onDeviation(kind, message): what RFC 4180 forbids but a lenient reader takes.
  constructor(onRecord, onDeviation = () => {}) {
    this.onRecord = onRecord;
    this.onDeviation = onDeviation;
    this.record = new Record();
    this.rest = null;
    this.records = 0;
  }

  push(chunk) {
    const bytes = this.rest ? Buffer.concat([this.rest, chunk]) : chunk;
    let at = 0;
    for (;;) {
      const next = this.parse(bytes, at, false);
      if (next < 0) break;
      at = next;
    }
    this.rest = at < bytes.length ? bytes.subarray(at) : null;
    if (this.rest && this.rest.length > RECORD_LIMIT) {
      throw new CsvError('Stream_InputStreamTooLarge', `record ${this.records + 1} is larger than 64 MB`);
    }
  }

  finish() {
    if (!this.rest) return;
    const bytes = this.rest;
    this.rest = null;
    let at = 0;
    while (at < bytes.length) {
      at = this.parse(bytes, at, true);
      if (at < 0)
        throw new CsvError(
          'Stream_ClosingQuoteMissing',
          `the closing quote is missing in record ${this.records + 1}`,
        );
    }
  }

  // Parses one record from `at`; returns where the next begins, or -1 when the
  // bytes end before the record does.
  parse(bytes, at, last) {
    const { record } = this;
    record.begin(bytes);
    const start = at;
    for (;;) {
      const end = bytes[at] === QUOTE ? this.quotedField(bytes, at, last) : this.plainField(bytes, at, last);
      if (end < 0) return -1;
      const stop = bytes[end];
      if (stop === COMMA) {
        at = end + 1;
        if (at === bytes.length) {
          if (!last) return -1;
          record.add(at, at, 0);
          return this.emit(start, at, at);
        }
        continue;
      }
      const next = afterLineEnd(bytes, end, last);
      return next < 0 ? -1 : this.emit(start, end, next);
    }
  }

  // Adds the field; returns the position of the delimiter after it, or -1.
  plainField(bytes, at, last) {
    let i = at;
    const { length } = bytes;
    while (i < length) {
      const c = bytes[i];
      if (c === COMMA || c === LF || c === CR) break;
      if (c === QUOTE) this.onDeviation('stray_quote', 'a quote inside an unquoted field');
      i += 1;
    }
    if (i === length && !last) return -1;
    this.record.add(at, i, 0);
    return i;
  }

  quotedField(bytes, at, last) {
    let i = at + 1;
    let flag = 1;
    for (;;) {
      i = bytes.indexOf(QUOTE, i);
      if (i < 0) return -1;
      if (i + 1 === bytes.length && !last) return -1;
      if (bytes[i + 1] !== QUOTE) break;
      flag = 2;
      i += 2;
    }
    this.record.add(at + 1, i, flag);
    const after = bytes[i + 1];
    if (after === undefined || after === COMMA || after === LF || after === CR) return i + 1;
    throw new CsvError(
      'BadRequest_UnexpectedCharacterInInputStream',
      `unexpected character after the closing quote in record ${this.records + 1}`,
    );
  }

  emit(start, end, next) {
    this.records += 1;
    this.record.number = this.records;
    this.record.from = start;
    this.record.to = end;
    this.onRecord(this.record);
    return next;
  }
}

function afterLineEnd(bytes, at, last) {
  if (at >= bytes.length) return last ? bytes.length : -1;
  if (bytes[at] === LF) return at + 1;
  if (at + 1 === bytes.length && !last) return -1;
  return bytes[at + 1] === LF ? at + 2 : at + 1;
}
