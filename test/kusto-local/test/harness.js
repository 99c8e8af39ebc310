// Starts the service as its users do, by the command line, and talks to its
// control API.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const PROGRAM = fileURLToPath(new URL('../bin/kusto-local', import.meta.url));

export class Running {
  static async start(...options) {
    const child = spawn(PROGRAM, ['--exit-on-stdin-close', ...options], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const lines = createInterface({ input: child.stdout });
    const [line] = await Promise.race([
      once(lines, 'line'),
      once(child, 'exit').then(([code]) => {
        throw new Error(`kusto-local ended with code ${code} before it was ready`);
      }),
    ]);
    return new Running(child, JSON.parse(line));
  }

  constructor(child, ready) {
    Object.assign(this, { child, ready });
    this.exited = once(child, 'exit');
  }

  async stop() {
    this.child.stdin.end();
    const [code] = await this.exited;
    return code;
  }

  async control(method, path, body) {
    const response = await fetch(this.ready.control + path, {
      method,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const result = await response.json();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${result.error}`);
    return result;
  }

  get(path) {
    return this.control('GET', path);
  }

  post(path, body = {}) {
    return this.control('POST', path, body);
  }

  async token(lifetime) {
    return (await this.post('/token', lifetime === undefined ? {} : { lifetime })).token;
  }

  // A Kusto request with everything a well-behaved client sends.
  async kusto(host, path, body, headers = {}) {
    return fetch(this.ready[host] + path, {
      method: 'POST',
      headers: {
        Accept: 'application/json',
        'Content-Type': 'application/json; charset=utf-8',
        'x-ms-client-request-id': `KLT.test;${crypto.randomUUID()}`,
        'x-ms-app': 'kusto-local-test',
        Authorization: `Bearer ${await this.token()}`,
        ...headers,
      },
      body: typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body),
    });
  }

  async rows(db, table) {
    return (await this.get(`/rows?db=${encodeURIComponent(db)}&table=${encodeURIComponent(table)}`)).rows;
  }
}
