// Answers that a fault holds back until the test lets go of them: storage that is slow to answer,
// for as long as the test wants and in the order that it wants.

export class HeldAnswers {
  constructor() {
    this.waiting = new Map();
  }

  // True when the answer is let go of, false when the client has left.
  wait({ req, entry }) {
    const { socket } = req;
    if (socket.destroyed) return Promise.resolve(false);
    entry.status = 'held';
    return new Promise((resolve) => {
      const end = (released) => {
        this.waiting.delete(entry.seq);
        socket.off('close', left);
        resolve(released);
      };
      const left = () => end(false);
      socket.once('close', left);
      this.waiting.set(entry.seq, () => end(true));
    });
  }

  // Those of these requests, by their numbers in the log, in this order; or all.
  release(seqs = [...this.waiting.keys()]) {
    for (const seq of seqs) {
      if (!this.waiting.has(seq)) throw new RangeError(`no answer is held of request ${seq}`);
    }
    for (const seq of new Set(seqs)) this.waiting.get(seq)();
    return seqs.length;
  }
}
