// Scripted faults: rules that match a request and say what goes wrong with it.
// A rule skips its first `skip` matches, then acts `times` times (-1: always).
import { HeldAnswers } from './held.js';

const SERVICES = new Set(['engine', 'ingest', 'login', 'imds', 'blob', 'queue', 'table', 'discard']);
const STREAMED = new Set(['blob', 'discard']);
const ACTIONS = new Set([
  'status',
  'reset',
  'reset_after_bytes',
  'blackhole',
  'lose_reply',
  'hold',
  'drip_ms',
  'delay_ms',
  'trickle_ms',
  'end_sas',
  'revoke_tokens',
]);
const MODIFIERS = new Set(['headers', 'body', 'drip_bytes', 'trickle_bytes']);
const PATTERNS = ['path', 'query', 'body'];

export class Faults {
  constructor() {
    this.rules = [];
    this.nextId = 1;
    this.held = new HeldAnswers();
  }

  add(definitions) {
    const list = Array.isArray(definitions) ? definitions : [definitions];
    const rules = list.map((d) => this.compile(d));
    this.rules.push(...rules);
    return rules.map((r) => r.id);
  }

  clear() {
    this.rules = [];
  }

  list() {
    return this.rules.map(({ id, match, times, skip, action, matched, fired }) => ({
      id,
      match,
      times,
      skip,
      action,
      matched,
      fired,
    }));
  }

  // A body pattern needs the whole body before the request is handled.
  wantsBody(service) {
    return this.rules.some((r) => r.patterns.body && r.applies(service));
  }

  // The action of the first rule that matches and still has something to do.
  take(request) {
    for (const rule of this.rules) {
      if (!matches(rule, request)) continue;
      rule.matched += 1;
      if (rule.matched <= rule.skip) continue;
      if (rule.times >= 0 && rule.fired >= rule.times) continue;
      rule.fired += 1;
      return rule.action;
    }
    return null;
  }

  compile({ match = {}, times = 1, skip = 0, action, ...rest }) {
    refuseUnknown(rest, [], 'fault');
    refuseUnknown(match, ['service', 'method', ...PATTERNS], 'match');
    if (!action || typeof action !== 'object') throw new RangeError('a fault needs an action');
    for (const key of Object.keys(action)) {
      if (!ACTIONS.has(key) && !MODIFIERS.has(key)) throw new RangeError(`unknown action: ${key}`);
    }
    if (!Object.keys(action).some((k) => ACTIONS.has(k))) throw new RangeError('the action does nothing');
    const everywhere = match.body ? [...SERVICES].filter((s) => !STREAMED.has(s)) : [...SERVICES];
    const services = match.service ? match.service.split('|') : everywhere;
    for (const s of services) {
      if (!SERVICES.has(s)) throw new RangeError(`unknown service: ${s}`);
    }
    if (match.body && services.some((s) => STREAMED.has(s))) {
      throw new RangeError('blob bodies are streamed and cannot be matched');
    }
    const patterns = {};
    for (const key of PATTERNS) {
      if (match[key] !== undefined) patterns[key] = new RegExp(match[key]);
    }
    const rule = { id: this.nextId++, match, times, skip, action, matched: 0, fired: 0, patterns };
    rule.applies = (service) => services.includes(service);
    return rule;
  }
}

function matches(rule, { service, method, path, query, body }) {
  const { patterns, match } = rule;
  if (!rule.applies(service)) return false;
  if (match.method && match.method.toUpperCase() !== method) return false;
  if (patterns.path && !patterns.path.test(path)) return false;
  if (patterns.query && !patterns.query.test(query)) return false;
  if (patterns.body && !patterns.body.test(body ?? '')) return false;
  return true;
}

function refuseUnknown(object, known, what) {
  for (const key of Object.keys(object)) {
    if (!known.includes(key)) throw new RangeError(`unknown ${what} key: ${key}`);
  }
}
