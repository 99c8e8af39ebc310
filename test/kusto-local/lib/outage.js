// Outages: parts of the service refuse connections for a while and come back at
// the same ports, with or without what they held. To a client that is the same
// as a process that ends and starts again; the control API stays.
//
// What has been ingested stays: rows are durable once they are reported.

export class Outage {
  constructor(service) {
    this.service = service;
    this.refusing = new Set();
    this.storageStopped = false;
  }

  // parts: "service", "storage", or names as in /connections. lose: the blobs,
  // messages and status rows are gone, and of "service" also the messages that
  // were taken.
  async begin({ parts = ['service'], lose = false }) {
    const { service } = this;
    const names = this.expand(parts);
    const stopsStorage = parts.includes('service') || parts.includes('storage');
    if (lose && !stopsStorage) throw new RangeError('only storage and service can lose something');
    if (stopsStorage && !lose && !service.stateDir)
      throw new RangeError('storage is in memory: it needs --state-dir to keep what it has');

    for (const name of names) this.refusing.add(name);
    const listeners = service.faultyListeners().filter(([name]) => names.includes(name));
    await Promise.all(listeners.map(([, listener]) => listener.close()));
    if (stopsStorage && !this.storageStopped) {
      this.storageStopped = true;
      await service.ingestion.pause();
      await service.stopStorage({ lose });
    }
    if (parts.includes('service') && lose) service.ingestion.clear();
    return { refusing: [...this.refusing] };
  }

  async end() {
    const { service } = this;
    if (this.storageStopped) {
      await service.startStorage();
      this.storageStopped = false;
      service.ingestion.resume();
    }
    const listeners = service.faultyListeners().filter(([name]) => this.refusing.has(name));
    await Promise.all(listeners.map(([, listener]) => listener.listen()));
    this.refusing.clear();
    return { refusing: [] };
  }

  expand(parts) {
    const all = this.service.faultyListeners().map(([name]) => name);
    return parts.flatMap((part) => {
      if (part === 'service') return all;
      if (part === 'storage') return all.filter((name) => name.includes('.'));
      if (!all.includes(part)) throw new RangeError(`no such part: ${part}`);
      return [part];
    });
  }
}
