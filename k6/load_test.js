// The original's load test: four minutes, up to 100 users.

import { ramp } from './traffic.js';

export { call as default, handleSummary } from './traffic.js';
export const options = ramp(100, 240);
