// A certified authorization server for the tests: oidc-provider on loopback, with a control
// interface beside it that creates grants without a browser and tells what the server has seen.
//
//   node server.mjs '{"access_token_seconds": 5, "refresh_token_seconds": 600, "rotate": true}'
//
// One line on stdout when it is ready: {"issuer": "http://127.0.0.1:PORT"}. Logs hold
// fingerprints (SHA-256, hex) of refresh tokens, never the tokens.
//
//   POST /control/grants?count=N&client=ID&scope=S   -> ["refresh token", ...]
//   GET  /control/log?since=N                        -> events from number N on
//   GET  /control/summary                            -> how many events of each sort

import { createHash, generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';
import { Storage } from './storage.mjs';

const options = {
  access_token_seconds: 3600,
  refresh_token_seconds: 14 * 86400,
  rotate: true,
  ...JSON.parse(process.argv[2] ?? '{}'),
};
const SECRET = 'a-secret-that-only-the-tests-know-0123456789';
const A_YEAR = 365 * 86400;

const usesGrants = {
  grant_types: ['authorization_code', 'refresh_token'],
  response_types: ['code'],
  redirect_uris: ['https://client.example/callback'],
};
const actsForItself = {
  grant_types: ['client_credentials'],
  response_types: [],
  redirect_uris: [],
};
const clients = [
  { client_id: 'public', token_endpoint_auth_method: 'none', ...usesGrants },
  { client_id: 'basic', client_secret: SECRET, token_endpoint_auth_method: 'client_secret_basic', ...usesGrants },
  { client_id: 'post', client_secret: SECRET, token_endpoint_auth_method: 'client_secret_post', ...usesGrants },
  { client_id: 'service-basic', client_secret: SECRET, token_endpoint_auth_method: 'client_secret_basic', ...actsForItself },
  { client_id: 'service-post', client_secret: SECRET, token_endpoint_auth_method: 'client_secret_post', ...actsForItself },
];

const log = [];
const record = (event, facts) => log.push({ number: log.length, at_ms: Date.now(), event, ...facts });
const fingerprint = (token) => createHash('sha256').update(token).digest('hex');

// The library takes a client's secret in the header and in the body alike, so a test that cares
// reads here which it was.
function clientAuthentication(header, parameters) {
  if (header) return 'basic';
  return parameters.client_secret ? 'post' : 'none';
}

function newProvider(issuer) {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const storage = new Storage();
  const provider = new Provider(issuer, {
    adapter: (model) => storage.of(model),
    clients,
    clientDefaults: { id_token_signed_response_alg: 'ES256' },
    cookies: { keys: [randomUUID()] },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      introspection: { enabled: true },
      revocation: { enabled: true },
    },
    findAccount: (_ctx, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
    interactions: { url: () => '/there-is-no-browser-here' },
    jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256' }] },
    rotateRefreshToken: options.rotate,
    scopes: ['openid', 'offline_access', 'api'],
    ttl: {
      AccessToken: options.access_token_seconds,
      ClientCredentials: options.access_token_seconds,
      IdToken: options.access_token_seconds,
      RefreshToken: options.refresh_token_seconds,
      Grant: A_YEAR,
      Session: A_YEAR,
      Interaction: 3600,
    },
  });

  // A token that is not a JWT is its own identifier, so `jti` is the value that a client holds.
  const ofToken = (token) => ({
    client: token.clientId,
    grant: token.grantId,
    refresh_token: fingerprint(token.jti),
  });
  provider.on('refresh_token.saved', (token) => record('refresh_token.saved', ofToken(token)));
  provider.on('refresh_token.consumed', (token) => record('refresh_token.consumed', ofToken(token)));
  provider.on('grant.revoked', (ctx, grant) => record('grant.revoked', { client: ctx.oidc.client?.clientId, grant }));
  provider.on('grant.error', (ctx, error) => { ctx.state.reason = error.error_detail; });
  provider.on('server_error', (_ctx, error) => console.error(error));

  provider.use(async (ctx, next) => {
    await next();
    if (ctx.oidc?.route !== 'token') return;
    const asked = ctx.oidc.params ?? {};
    record('token_request', {
      client: ctx.oidc.client?.clientId ?? asked.client_id,
      client_auth: clientAuthentication(ctx.get('authorization'), asked),
      grant_type: asked.grant_type,
      grant: ctx.oidc.entities.RefreshToken?.grantId,
      refresh_token: asked.refresh_token && fingerprint(asked.refresh_token),
      status: ctx.status,
      error: ctx.body?.error,
      reason: ctx.state.reason,
    });
  });
  return provider;
}

async function createGrants(provider, query) {
  const client = await provider.Client.find(query.get('client') ?? 'public');
  if (!client) throw new Error(`there is no client "${query.get('client')}"`);
  const scope = query.get('scope') ?? 'openid offline_access';
  const refreshTokens = [];
  for (let left = Number(query.get('count') ?? 1); left > 0; left -= 1) {
    const accountId = `account-${randomUUID()}`;
    const grant = new provider.Grant({ accountId, clientId: client.clientId });
    grant.addOIDCScope(scope);
    const grantId = await grant.save();
    const token = new provider.RefreshToken({ accountId, client, grantId, scope, gty: 'authorization_code' });
    refreshTokens.push(await token.save());
  }
  return refreshTokens;
}

function summarize() {
  const requests = log.filter((entry) => entry.event === 'token_request');
  const count = (event) => log.filter((entry) => entry.event === event).length;
  return {
    token_requests: requests.length,
    token_requests_granted: requests.filter((entry) => entry.status === 200).length,
    token_requests_refused: requests.filter((entry) => entry.status !== 200).length,
    refresh_tokens_saved: count('refresh_token.saved'),
    refresh_tokens_consumed: count('refresh_token.consumed'),
    grants_revoked: count('grant.revoked'),
  };
}

async function control(provider, method, url) {
  switch (`${method} ${url.pathname}`) {
    case 'POST /control/grants': return createGrants(provider, url.searchParams);
    case 'GET /control/log': return log.slice(Number(url.searchParams.get('since') ?? 0));
    case 'GET /control/summary': return summarize();
    default: throw new Error(`there is no ${method} ${url.pathname}`);
  }
}

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = newProvider(issuer);
  const oauth = provider.callback();
  server.on('request', (request, response) => {
    const url = new URL(request.url, issuer);
    if (!url.pathname.startsWith('/control/')) {
      oauth(request, response);
      return;
    }
    const answer = (status, body) => response
      .writeHead(status, { 'content-type': 'application/json' })
      .end(JSON.stringify(body));
    control(provider, request.method, url).then(
      (body) => answer(200, body),
      (error) => answer(400, { error: error.message }),
    );
  });
  console.log(JSON.stringify({ issuer }));
});
