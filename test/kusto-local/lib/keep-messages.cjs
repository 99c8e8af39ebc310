// Preloaded into Azurite: its queues' garbage collector, every minute, sorts all that is there anew for each
// message that it forgets: some thousand of them hold Azurite up for half a minute, to get back a few megabytes.
'use strict';

const constants = require('azurite/dist/src/queue/utils/constants');

const DAY_MS = 24 * 60 * 60 * 1000;

if (typeof constants.DEFAULT_GC_INTERVAL_MS !== 'number') throw new Error('Azurite names the interval of its queues\' garbage collector differently');
constants.DEFAULT_GC_INTERVAL_MS = DAY_MS;
