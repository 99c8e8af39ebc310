// Kusto's scalar types: text as it stands in CSV → typed value, and back
// (learn.microsoft.com/kusto/query/scalar-data-types). Values in JavaScript:
// bool boolean · int, real number · long bigint · datetime, timespan bigint of
// 100 ns ticks · string, guid, decimal string · dynamic its JSON text · null.

export const STRING_LIMIT = 1024 * 1024;
export const DYNAMIC_LIMIT = 1024 * 1024;
export const DECIMAL_DIGITS = 34;

const ALIASES = {
  bool: 'bool',
  boolean: 'bool',
  int: 'int',
  int32: 'int',
  long: 'long',
  int64: 'long',
  real: 'real',
  double: 'real',
  decimal: 'decimal',
  string: 'string',
  datetime: 'datetime',
  date: 'datetime',
  timespan: 'timespan',
  time: 'timespan',
  guid: 'guid',
  uuid: 'guid',
  uniqueid: 'guid',
  dynamic: 'dynamic',
  object: 'dynamic',
};

// The CLR names that v1 responses and `.show table` use for the types.
export const CLR = {
  bool: 'SByte',
  int: 'Int32',
  long: 'Int64',
  real: 'Double',
  decimal: 'SqlDecimal',
  string: 'String',
  datetime: 'DateTime',
  timespan: 'TimeSpan',
  guid: 'Guid',
  dynamic: 'Object',
};

export const CLR_FULL = {
  bool: 'System.SByte',
  int: 'System.Int32',
  long: 'System.Int64',
  real: 'System.Double',
  decimal: 'System.Data.SqlTypes.SqlDecimal',
  string: 'System.String',
  datetime: 'System.DateTime',
  timespan: 'System.TimeSpan',
  guid: 'System.Guid',
  dynamic: 'System.Object',
};

export function typeNamed(name) {
  return ALIASES[name.toLowerCase().replace(/^system\./, '')] ?? null;
}

const INT64_MIN = -(2n ** 63n);
const INT64_MAX = 2n ** 63n - 1n;
const TICKS_PER_MS = 10_000n;
const TICKS_PER_DAY = 864_000_000_000n;
const EPOCH_TICKS = 621_355_968_000_000_000n;
const EPOCH_MS = 62_135_596_800_000;

const DATETIME =
  /^(\d{4})-(\d{2})-(\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,7}))?)?(?:Z|([+-])(\d{2}):?(\d{2}))?)?$/;
const TIMESPAN = /^(-)?(?:(\d{1,8})\.)?(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,7}))?)?$/;
const TIMESPAN_LITERAL =
  /^(-?\d+(?:\.\d+)?)(d|h|m|s|ms|microsecond|tick|days?|hours?|minutes?|seconds?|milliseconds?|microseconds?|ticks?)?$/;
const REAL = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$/;
const DECIMAL = /^([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d{1,3}))?$/;
const GUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const UNIT_TICKS = {
  d: 864e9,
  h: 36e9,
  m: 6e8,
  s: 1e7,
  ms: 1e4,
  microsecond: 10,
  tick: 1,
  day: 864e9,
  hour: 36e9,
  minute: 6e8,
  second: 1e7,
  millisecond: 1e4,
};

// undefined: the text is not a value of the type (the real service stores null).
const PARSERS = {
  bool(text) {
    switch (text.toLowerCase()) {
      case 'true':
      case '1':
        return true;
      case 'false':
      case '0':
        return false;
      default:
        return undefined;
    }
  },
  int(text) {
    if (!/^[+-]?\d{1,12}$/.test(text)) return undefined;
    const n = Number(text);
    return n >= -2147483648 && n <= 2147483647 ? n : undefined;
  },
  long(text) {
    if (!/^[+-]?\d+$/.test(text)) return undefined;
    if (text.length <= 15) return BigInt(Number(text));
    const n = BigInt(text.replace(/^\+/, ''));
    return n >= INT64_MIN && n <= INT64_MAX ? n : undefined;
  },
  real(text) {
    if (REAL.test(text)) {
      const n = Number(text);
      return Number.isFinite(n) ? n : undefined;
    }
    if (text === 'NaN') return NaN;
    if (text === 'Infinity') return Infinity;
    return text === '-Infinity' ? -Infinity : undefined;
  },
  decimal: parseDecimal,
  string: (text) => text,
  datetime: parseDatetime,
  timespan: parseTimespan,
  guid(text) {
    if (GUID.test(text)) return text.toLowerCase();
    if (!/^[0-9a-f]{32}$/i.test(text)) return undefined;
    return text.toLowerCase().replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
  },
  dynamic(text) {
    try {
      return JSON.parse(text) === null ? null : text;
    } catch {
      return undefined;
    }
  },
};

export function parserOf(type) {
  return PARSERS[type];
}

// Plain digits without trailing zeros after the point: 34 digits are sure.
function parseDecimal(text) {
  const m = DECIMAL.exec(text);
  if (!m || (!m[2] && !m[3])) return undefined;
  const [, sign, whole, fraction = '', exponent] = m;
  let digits = whole + fraction;
  let point = whole.length + Number(exponent ?? 0);
  if (point < 0) {
    digits = '0'.repeat(-point) + digits;
    point = 0;
  }
  digits = digits.padEnd(point, '0');
  const before = digits.slice(0, point).replace(/^0+/, '') || '0';
  const after = digits.slice(point).replace(/0+$/, '');
  const significant = (before + after).replace(/^0+/, '').replace(/0+$/, '');
  if (significant.length > DECIMAL_DIGITS) return undefined;
  if (significant === '') return '0';
  return (sign === '-' ? '-' : '') + before + (after ? `.${after}` : '');
}

function parseDatetime(text) {
  const m = DATETIME.exec(text);
  if (!m) return undefined;
  const [year, month, day] = [Number(m[1]), Number(m[2]), Number(m[3])];
  const [hour, minute, second] = [Number(m[4] ?? 0), Number(m[5] ?? 0), Number(m[6] ?? 0)];
  if (year < 1 || hour > 23 || minute > 59 || second > 59) return undefined;
  const date = new Date(0);
  date.setUTCFullYear(year, month - 1, day);
  if (date.getUTCMonth() !== month - 1 || date.getUTCDate() !== day) return undefined;
  let ms = date.getTime() + ((hour * 60 + minute) * 60 + second) * 1000;
  if (m[8]) ms -= (m[8] === '-' ? -1 : 1) * (Number(m[9]) * 60 + Number(m[10])) * 60_000;
  const ticks = BigInt(ms + EPOCH_MS) * TICKS_PER_MS + (m[7] ? BigInt(m[7].padEnd(7, '0')) : 0n);
  return ticks >= 0n && ticks <= 3_155_378_975_999_999_999n ? ticks : undefined;
}

function parseTimespan(text) {
  const m = TIMESPAN.exec(text);
  if (!m) return parseTimespanLiteral(text);
  const [hour, minute, second] = [Number(m[3]), Number(m[4]), Number(m[5] ?? 0)];
  if (hour > 23 || minute > 59 || second > 59) return undefined;
  let ticks = BigInt(m[2] ?? 0) * TICKS_PER_DAY + BigInt((hour * 60 + minute) * 60 + second) * 10_000_000n;
  if (m[6]) ticks += BigInt(m[6].padEnd(7, '0'));
  if (m[1]) ticks = -ticks;
  return ticks >= INT64_MIN && ticks <= INT64_MAX ? ticks : undefined;
}

function parseTimespanLiteral(text) {
  const m = TIMESPAN_LITERAL.exec(text);
  if (!m) return undefined;
  const unit = m[2] === undefined ? 'd' : m[2];
  const perUnit = UNIT_TICKS[unit] ?? UNIT_TICKS[unit.replace(/s$/, '')];
  const ticks = Number(m[1]) * perUnit;
  return Math.abs(ticks) < 9.2e18 ? BigInt(Math.round(ticks)) : undefined;
}

// Ticks are never negative, so the seconds since year 1 are exact in a double.
export function formatDatetime(ticks) {
  const seconds = Number(ticks / 10_000_000n);
  const fraction = Number(ticks % 10_000_000n);
  const text = new Date(seconds * 1000 - EPOCH_MS).toISOString();
  return `${text.slice(0, 19)}.${String(fraction).padStart(7, '0')}Z`;
}

export function datetimeFromMs(ms) {
  return BigInt(Math.trunc(ms)) * TICKS_PER_MS + EPOCH_TICKS;
}

// .NET's constant form: [-][d.]hh:mm:ss[.fffffff]
export function formatTimespan(ticks) {
  const negative = ticks < 0n;
  const all = negative ? -ticks : ticks;
  const days = all / TICKS_PER_DAY;
  const seconds = Number((all % TICKS_PER_DAY) / 10_000_000n);
  const fraction = all % 10_000_000n;
  const two = (n) => String(n).padStart(2, '0');
  const time = `${two(Math.floor(seconds / 3600))}:${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`;
  return (
    (negative ? '-' : '') +
    (days ? `${days}.` : '') +
    time +
    (fraction ? `.${String(fraction).padStart(7, '0')}` : '')
  );
}

// Doubles as the service prints them: 1 as 1.0, large ones as 1E+20.
export function formatReal(n) {
  if (Number.isNaN(n)) return 'NaN';
  if (!Number.isFinite(n)) return n > 0 ? 'Infinity' : '-Infinity';
  if (Object.is(n, -0)) return '-0.0';
  const text = String(n);
  if (text.includes('e')) return text.replace('e', 'E');
  return text.includes('.') ? text : `${text}.0`;
}

// The value as JSON text of a query response.
export function toJson(type, value, dynamicAsText = false) {
  if (value === null) return 'null';
  switch (type) {
    case 'bool':
      return value ? 'true' : 'false';
    case 'int':
    case 'long':
      return String(value);
    case 'real':
      return Number.isFinite(value) ? formatReal(value) : `"${formatReal(value)}"`;
    case 'datetime':
      return `"${formatDatetime(value)}"`;
    case 'timespan':
      return `"${formatTimespan(value)}"`;
    case 'dynamic':
      return dynamicAsText && /^\s*[[{]/.test(value) ? JSON.stringify(value) : value;
    default:
      return JSON.stringify(value);
  }
}

// The value as Kusto's tostring() gives it.
export function toText(type, value) {
  if (value === null) return '';
  switch (type) {
    case 'real':
      return formatReal(value).replace(/\.0$/, '');
    case 'datetime':
      return formatDatetime(value);
    case 'timespan':
      return formatTimespan(value);
    case 'dynamic': {
      const parsed = JSON.parse(value);
      return typeof parsed === 'string' ? parsed : value;
    }
    default:
      return String(value);
  }
}
