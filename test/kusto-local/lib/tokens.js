// Signed tokens with a lifetime: bearer tokens for Kusto, and the identity token
// that goes into every ingestion message. Only this run's key signs them.
import { createHmac, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto';

const encode = (object) => Buffer.from(JSON.stringify(object)).toString('base64url');

export class TokenError extends Error {}

export class Tokens {
  constructor() {
    this.key = randomBytes(32);
    this.revokedBefore = { bearer: 0, identity: 0 };
  }

  sign(text) {
    return createHmac('sha256', this.key).update(text).digest('base64url');
  }

  // kind: 'bearer' or 'identity'; they do not stand in for each other.
  issue(kind, claims, lifetimeSeconds) {
    const now = Date.now() / 1000;
    const body = {
      ...claims,
      kind,
      iat: Math.floor(now),
      nbf: Math.floor(now),
      exp: now + lifetimeSeconds,
      issued_ms: Date.now(),
      jti: randomUUID(),
    };
    const text = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(body)}`;
    return `${text}.${this.sign(text)}`;
  }

  // Every token issued so far, or every one of a kind, stops working.
  revokeAll(kind = null) {
    for (const each of Object.keys(this.revokedBefore)) {
      if (kind === null || kind === each) this.revokedBefore[each] = Date.now() + 1;
    }
  }

  verify(kind, token) {
    const parts = String(token).split('.');
    if (parts.length !== 3) throw new TokenError('the token is not a JWT');
    const expected = Buffer.from(this.sign(`${parts[0]}.${parts[1]}`));
    const given = Buffer.from(parts[2]);
    if (expected.length !== given.length || !timingSafeEqual(expected, given)) {
      throw new TokenError('the token was not issued by this service');
    }
    const claims = JSON.parse(Buffer.from(parts[1], 'base64url').toString('utf8'));
    if (claims.kind !== kind)
      throw new TokenError(`a ${claims.kind} token stands where a ${kind} token must`);
    if (claims.exp <= Date.now() / 1000) throw new TokenError('the token is expired');
    if (claims.issued_ms < this.revokedBefore[kind]) throw new TokenError('the token was revoked');
    return claims;
  }
}
