// What the service saw: the requests in order, and the protocol violations
// that tests assert to be none. Nothing kept here holds a secret.
import { maskSecrets } from './mask.js';

const MAX_LOG = 200_000;

export class Journal {
  constructor() {
    this.reset();
  }

  reset() {
    this.violations = [];
    this.requests = [];
    this.sequence = 0;
  }

  resetLog() {
    this.requests = [];
  }

  // One entry for each distinct finding: a broken formatter would otherwise
  // repeat itself for every row, so equal kind and place are counted.
  violation(kind, message, where = {}) {
    const text = maskSecrets(message);
    const key = JSON.stringify([kind, where.db, where.table, where.column, where.path, text]);
    const known = this.violations.find((v) => v.key === key);
    if (known) {
      known.count += 1;
      return;
    }
    this.violations.push({ key, kind, message: text, ...where, count: 1 });
  }

  listViolations() {
    return this.violations.map(({ key, ...rest }) => rest);
  }

  request(entry) {
    this.sequence += 1;
    const record = {
      seq: this.sequence,
      at: new Date().toISOString(),
      ...entry,
      path: maskSecrets(entry.path),
    };
    if (this.requests.length >= MAX_LOG) this.requests.shift();
    this.requests.push(record);
    return record;
  }
}
