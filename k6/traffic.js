// The traffic of both tests: seven requests of different kinds, users who come and go, and the table of what they saw.

import http from 'k6/http';
import { check, sleep } from 'k6';

const URL = `http://${__ENV.HOST || '127.0.0.1'}:${__ENV.PORT || 3000}/generate`;
const HEADERS = { 'Content-Type': 'application/json' };
const PAUSE_SECONDS = 1;
const P95_SECONDS = Number(__ENV.P95_SECONDS || 15); // slower than the original's first code was

const REQUESTS = [
  sampled('Question: Why do the leaves of some trees turn red in autumn?\nAnswer:', 32),
  sampled('The lighthouse keeper had not seen a ship for eleven days when, one morning,', 50),
  greedy('def is_leap_year(year):\n    """True if February has 29 days in that year."""\n', 30),
  sampled('Translate from English to French.\nEnglish: Where is the nearest train station?\nFrench:', 32),
  sampled('Review: The soup was cold and the waiter forgot us twice.\nIs this review positive or negative?', 16),
  sampled('A list of what to pack for a week in the mountains:\n1. boots\n2. a map\n3.', 32),
  greedy(
    'Honey bees tell each other where to find flowers by dancing. The angle of the dance shows the direction, measured ' +
      'from the sun, and its length shows how far the flowers are from the hive. Bees that follow the dance then fly ' +
      'straight to the place.\nIn one sentence:',
    24,
  ),
];

function sampled(inputs, maxNewTokens) {
  return body(inputs, { max_new_tokens: maxNewTokens, do_sample: true, top_p: 0.9 });
}

function greedy(inputs, maxNewTokens) {
  return body(inputs, { max_new_tokens: maxNewTokens, do_sample: false });
}

function body(inputs, parameters) {
  return JSON.stringify({ inputs, parameters });
}

// One user's next call. Users begin at different requests, so that all kinds are in flight at once.
export function call() {
  const response = http.post(URL, REQUESTS[(__VU + __ITER) % REQUESTS.length], { headers: HEADERS });
  check(response, {
    'status is 200': ({ status }) => status === 200,
    'generated_text is not empty': ({ status }) => status === 200 && Boolean(response.json('generated_text')),
  });
  sleep(PAUSE_SECONDS);
}

// A quarter of the time up to half of the users, half of it up to all, a quarter down to none.
export function ramp(users, defaultSeconds) {
  const seconds = Number(__ENV.DURATION || defaultSeconds);
  return {
    stages: [
      { duration: `${seconds / 4}s`, target: users / 2 },
      { duration: `${seconds / 2}s`, target: users },
      { duration: `${seconds / 4}s`, target: 0 },
    ],
    thresholds: {
      // The second one ends the test early where there is no server at all.
      http_req_failed: ['rate==0', { threshold: 'rate<0.5', abortOnFail: true }],
      http_req_duration: [`p(95)<${P95_SECONDS * 1000}`],
      // A sampled answer may rightly be empty: its first token may be the end of the text.
      'checks{check:generated_text is not empty}': ['rate>0.95'],
    },
  };
}

export function handleSummary({ metrics }) {
  const latency = metrics.http_req_duration.values;
  const columns = ['avg', 'min', 'med', 'max', 'p(90)', 'p(95)'].map((name) => [name, duration(latency[name])]);
  columns.push(['RPS', metrics.http_reqs.values.rate.toFixed(2)]);
  columns.push(['requests', metrics.http_reqs.values.count]);
  columns.push(['failed', metrics.http_req_failed.values.passes]); // a rate's "passes" are the samples that are true
  const rows = [columns.map(([name]) => name), columns.map(() => '---'), columns.map(([, value]) => value)];
  return { stdout: rows.map((cells) => `| ${cells.join(' | ')} |\n`).join('') };
}

function duration(milliseconds) {
  return milliseconds < 1000 ? `${milliseconds.toFixed(2)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}
