// The load test in small: twenty seconds, up to 8 users.

import { ramp } from './traffic.js';

export { call as default, handleSummary } from './traffic.js';
export const options = ramp(8, 20);
