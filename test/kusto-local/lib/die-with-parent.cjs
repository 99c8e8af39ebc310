// Preloaded into Azurite: ends it when the service's IPC channel closes, so
// that not even a SIGKILL of the service leaves an Azurite behind.
'use strict';

process.on('disconnect', () => process.exit(0));
// The channel alone must not keep Azurite from ending by itself.
process.channel.unref();
