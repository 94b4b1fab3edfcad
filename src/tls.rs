//! TLS: who does the cryptography. Why ring: `docs/decisions/0007-ring.md`.

/// Gives rustls its cryptography. Our reqwest comes without one of its own, so this comes before
/// the first client; once is enough, and more often does no harm.
pub fn provide() {
    // Err means that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
