// What the authorization server remembers. The library's own memory forgets after 1,000 entries,
// and a forgotten refresh token looks like a lost one; this one keeps everything that may still
// matter.

// Entries stay a while past their expiry, so that the library itself says "expired".
const KEPT_AFTER_EXPIRY_MS = 60_000;

/** All models of one server. Tokens of one grant are indexed so that it can be revoked whole. */
export class Storage {
  #models = new Map();

  /** The part of the storage that belongs to one model ("RefreshToken", "Grant", ...). */
  of(model) {
    if (!this.#models.has(model)) this.#models.set(model, new Model());
    return this.#models.get(model);
  }
}

class Model {
  #entries = new Map();
  #idsOfGrant = new Map();

  async upsert(id, payload, expiresIn) {
    this.#forgetExpired();
    this.#entries.set(id, { payload, endsAt: Date.now() + expiresIn * 1000 + KEPT_AFTER_EXPIRY_MS });
    if (payload.grantId) {
      if (!this.#idsOfGrant.has(payload.grantId)) this.#idsOfGrant.set(payload.grantId, new Set());
      this.#idsOfGrant.get(payload.grantId).add(id);
    }
  }

  async find(id) {
    return this.#entries.get(id)?.payload;
  }

  async findByUid(uid) {
    return this.#first((payload) => payload.uid === uid);
  }

  async findByUserCode(userCode) {
    return this.#first((payload) => payload.userCode === userCode);
  }

  async consume(id) {
    this.#entries.get(id).payload.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    const grantId = this.#entries.get(id)?.payload.grantId;
    this.#entries.delete(id);
    const ids = this.#idsOfGrant.get(grantId);
    ids?.delete(id);
    if (ids?.size === 0) this.#idsOfGrant.delete(grantId);
  }

  async revokeByGrantId(grantId) {
    for (const id of this.#idsOfGrant.get(grantId) ?? []) this.#entries.delete(id);
    this.#idsOfGrant.delete(grantId);
  }

  #first(holds) {
    for (const { payload } of this.#entries.values()) if (holds(payload)) return payload;
    return undefined;
  }

  // All entries of one model live equally long, so the oldest come first.
  #forgetExpired() {
    const now = Date.now();
    for (const [id, entry] of this.#entries) {
      if (entry.endsAt > now) return;
      this.destroy(id);
    }
  }
}
