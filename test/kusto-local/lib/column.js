// A growable column of one Kusto type. Numbers live in typed arrays, so that a
// million rows of them cost megabytes and not objects.

const ARRAYS = {
  bool: Uint8Array,
  int: Int32Array,
  long: BigInt64Array,
  real: Float64Array,
  datetime: BigInt64Array,
  timespan: BigInt64Array,
};

class FixedColumn {
  constructor(type) {
    this.type = type;
    this.length = 0;
    this.values = new ARRAYS[type](256);
    this.nulls = new Uint8Array(256);
    this.zero = this.values instanceof BigInt64Array ? 0n : 0;
  }

  push(value) {
    if (this.length === this.values.length) this.grow(this.length * 2);
    const isNull = value === null;
    this.nulls[this.length] = isNull ? 1 : 0;
    this.values[this.length] = isNull ? this.zero : value;
    this.length += 1;
  }

  get(i) {
    if (this.nulls[i]) return null;
    return this.type === 'bool' ? this.values[i] === 1 : this.values[i];
  }

  grow(capacity) {
    const { values, nulls } = this;
    this.values = new values.constructor(capacity);
    this.values.set(values);
    this.nulls = new Uint8Array(capacity);
    this.nulls.set(nulls);
  }
}

class TextColumn {
  constructor(type) {
    this.type = type;
    this.values = [];
  }

  get length() {
    return this.values.length;
  }

  push(value) {
    this.values.push(value);
  }

  get(i) {
    return this.values[i];
  }
}

export function makeColumn(type) {
  return ARRAYS[type] ? new FixedColumn(type) : new TextColumn(type);
}
