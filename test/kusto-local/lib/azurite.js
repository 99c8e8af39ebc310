// Azurite as a child process: Microsoft's own emulator of Blob, Queue and
// Table storage, on ephemeral ports, with accounts and keys made for this run.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);
const STARTED =
  /Azurite (Blob|Queue|Table) service is successfully listening at https?:\/\/127\.0\.0\.1:(\d+)\s/gi;

export function makeAccount(name) {
  return { name, key: randomBytes(64).toString('base64') };
}

// Resolves with { ports: {blob, queue, table}, stop() } when all three listen.
export async function startAzurite(accounts, { stateDir = null, onExit = () => {} } = {}) {
  const storage = stateDir ? ['--location', stateDir] : ['--inMemoryPersistence'];
  const child = spawn(
    process.execPath,
    [
      // Blobs are memory beside V8's heap, which would all be marked for every few MB of them.
      '--no-incremental-marking',
      '--require',
      fileURLToPath(new URL('./die-with-parent.cjs', import.meta.url)),
      '--require',
      fileURLToPath(new URL('./keep-messages.cjs', import.meta.url)),
      require.resolve('azurite/dist/src/azurite.js'),
      '--disableTelemetry',
      '--skipApiVersionCheck',
      '--silent',
      '--blobPort',
      '0',
      '--queuePort',
      '0',
      '--tablePort',
      '0',
      // Idle connections of our own pools must not be closed under a request.
      '--blobKeepAliveTimeout',
      '86400',
      '--queueKeepAliveTimeout',
      '86400',
      '--tableKeepAliveTimeout',
      '86400',
      ...storage,
    ],
    {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      env: {
        ...process.env,
        AZURITE_ACCOUNTS: accounts.map((a) => `${a.name}:${a.key}`).join(';'),
      },
    },
  );
  const exited = new Promise((resolve) => child.once('exit', resolve));
  const ports = await listening(child);
  let stopping = false;
  exited.then((code) => {
    if (!stopping) onExit(code);
  });
  return {
    ports,
    pid: child.pid,
    async stop() {
      stopping = true;
      // In memory there is nothing to save, and a graceful stop takes seconds.
      child.kill(stateDir ? 'SIGTERM' : 'SIGKILL');
      await exited;
    },
  };
}

function listening(child) {
  return new Promise((resolve, reject) => {
    let text = '';
    const ports = {};
    const read = (chunk) => {
      text += chunk;
      for (const [, service, port] of text.matchAll(STARTED)) {
        ports[service.toLowerCase()] = Number(port);
      }
      if (ports.blob && ports.queue && ports.table) resolve(ports);
    };
    child.stdout.on('data', read);
    child.stderr.on('data', read);
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`Azurite ended with code ${code}: ${text.trim()}`)));
  });
}
