// Storage that answers late. nginx stands before it (lib/sink.sh), has read the body of a request by then, and
// sends the headers alone, so that this takes next to no processor time.
//
//   node late_answers.mjs SOCKET    prints a line when it listens. A line of its input is the number of
//                                   milliseconds from now on, and is repeated. Ends when its input does.
import http from 'node:http';
import { createInterface } from 'node:readline';

const ANSWER = { ETag: '"0x1"', 'x-ms-request-server-encrypted': 'true', 'Content-Length': '0' };
let latency = 0;

const server = http.createServer((req, res) => {
  const send = () => res.writeHead(req.method === 'PUT' ? 201 : 404, ANSWER).end();
  if (latency) setTimeout(send, latency);
  else send();
});
// nginx decides when a connection ends.
server.keepAliveTimeout = 3_600_000;
createInterface({ input: process.stdin })
  .on('line', (line) => {
    latency = Number(line);
    console.log(line);
  })
  .once('close', () => process.exit(0));
server.listen({ path: process.argv[2], readableAll: true, writableAll: true }, () => console.log('listening'));
