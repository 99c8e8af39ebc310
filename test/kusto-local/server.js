// Entry: reads the command line, starts the service, prints the ready line, and
// ends everything on a signal or when stdin closes.
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Service } from './lib/service.js';

const { values: args } = parseArgs({
  options: {
    'port-file': { type: 'string' },
    'tls-cert': { type: 'string' },
    'tls-key': { type: 'string' },
    'state-dir': { type: 'string' },
    'batching-ms': { type: 'string' },
    database: { type: 'string', multiple: true },
    config: { type: 'string' },
    'exit-on-stdin-close': { type: 'boolean' },
  },
});

const config = args.config ? JSON.parse(args.config) : {};
if (args['batching-ms'] !== undefined) config.batching_ms = Number(args['batching-ms']);
const tls = args['tls-cert']
  ? { cert: readFileSync(args['tls-cert']), key: readFileSync(args['tls-key']) }
  : null;

let service = null;
let ending = null;

function end(code, why) {
  if (why) process.stderr.write(`kusto-local: ${why}\n`);
  ending ??= Promise.resolve(service?.stop())
    .catch(() => {})
    .then(() => process.exit(code));
  return ending;
}

process.on('SIGTERM', () => end(0));
process.on('SIGINT', () => end(0));
process.on('SIGHUP', () => end(0));
if (args['exit-on-stdin-close']) {
  process.stdin.resume();
  process.stdin.on('end', () => end(0));
  process.stdin.on('close', () => end(0));
}

const starting = new Service({
  databases: args.database ?? ['telemetry'],
  config,
  tls,
  stateDir: args['state-dir'],
  onStorageExit: (code) => end(1, `Azurite ended unexpectedly with code ${code}`),
});
await starting.start();
service = starting;
const line = JSON.stringify(service.ready());
if (args['port-file']) {
  // Renamed into place, so that a waiting reader never sees half of it.
  writeFileSync(`${args['port-file']}.new`, `${line}\n`, { mode: 0o600 });
  renameSync(`${args['port-file']}.new`, args['port-file']);
}
if (!ending) process.stdout.write(`${line}\n`);
