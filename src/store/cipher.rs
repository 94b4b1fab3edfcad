//! Encryption at rest: XChaCha20-Poly1305, one key, each ciphertext bound to its row.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{StoreError, folder_of};
use crate::secret::Secret;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// Seals and opens with one key.
pub struct Cipher {
    id: String,
    aead: XChaCha20Poly1305,
}

impl Cipher {
    /// A cipher from 32 bytes in base64.
    pub fn from_base64(text: &Secret) -> Result<Self, StoreError> {
        let bytes = STANDARD.decode(text.expose().trim()).map(Zeroizing::new);
        let bytes = bytes
            .ok()
            .filter(|bytes| bytes.len() == KEY_BYTES)
            .ok_or_else(|| {
                StoreError::Key(
                    "is not 32 bytes in base64; make one with `openssl rand -base64 32`".into(),
                )
            })?;
        let aead = XChaCha20Poly1305::new_from_slice(&bytes).expect("the length was checked");
        // The id names the key without giving it away, so a wrong key is told from a
        // changed row.
        let digest = Sha256::new()
            .chain_update("perennial key id v1")
            .chain_update(&*bytes)
            .finalize();
        let id = digest[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Self { id, aead })
    }

    /// Names the key: 8 hexadecimal digits.
    pub fn key_id(&self) -> &str {
        &self.id
    }

    /// Encrypts `plain` so that it opens only with the same `context`.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).expect("the operating system gives random bytes");
        let payload = Payload {
            msg: plain,
            aad: context.as_bytes(),
        };
        let sealed = self
            .aead
            .encrypt(&XNonce::from(nonce), payload)
            .expect("tokens are not gigabytes");
        [nonce.as_slice(), &sealed].concat()
    }

    /// Decrypts what [`Cipher::seal`] made; `None` if it was changed or belongs elsewhere.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let payload = Payload {
            msg: sealed,
            aad: context.as_bytes(),
        };
        self.aead
            .decrypt(&XNonce::from(*nonce), payload)
            .ok()
            .map(Zeroizing::new)
    }
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cipher")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Reads the key from its file. A file that others can read is refused, like a private key
/// of SSH.
pub fn read_key_file(path: &Path) -> Result<Secret, StoreError> {
    let failed = |error: std::io::Error| {
        StoreError::Key(format!(
            "{}: {error}; restore the key file, or set PERENNIAL_KEY",
            path.display()
        ))
    };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(StoreError::Key(format!(
            "{} can be read by everyone; run: chmod 600 {0}",
            path.display()
        )));
    }
    fs::read_to_string(path).map(Secret::new).map_err(failed)
}

/// Makes a new key and writes it to its file, mode 0600, durably. Never replaces a file: whoever
/// sees one sees a whole key.
pub fn generate_key_file(path: &Path) -> Result<Secret, StoreError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut *bytes).expect("the operating system gives random bytes");
    let text = Secret::new(STANDARD.encode(*bytes));
    let write = || {
        let folder = folder_of(path)?;
        // Two that begin at the same time must not each have a key. Some network file systems
        // refuse to lock a folder.
        let _ = folder.lock();
        if path.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        // Of one who crashed in here. Whatever it is, the key is not written into it.
        let _ = fs::remove_file(&draft);
        let mut file = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&draft)?;
        writeln!(file, "{}", text.expose())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&draft, path))
            .and_then(|()| folder.sync_all())
            .inspect_err(|_| _ = fs::remove_file(&draft))
    };
    write().map_err(|error| {
        StoreError::Key(format!(
            "{} cannot be made: {error}; make its folder writable, or set PERENNIAL_KEY",
            path.display()
        ))
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher(byte: u8) -> Cipher {
        Cipher::from_base64(&Secret::new(STANDARD.encode([byte; KEY_BYTES]))).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_only_in_its_place() {
        let sealed = cipher(1).seal("row 1", b"token");
        assert_eq!(
            cipher(1).open("row 1", &sealed).unwrap().as_slice(),
            b"token"
        );
        assert!(cipher(1).open("row 2", &sealed).is_none(), "another row");
        assert!(cipher(2).open("row 1", &sealed).is_none(), "another key");
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(cipher(1).open("row 1", &changed).is_none(), "a flipped bit");
        assert!(cipher(1).open("row 1", &sealed[..10]).is_none(), "torn");
        assert_ne!(sealed, cipher(1).seal("row 1", b"token"), "nonces differ");
    }

    #[test]
    fn keys_have_ids_and_must_be_whole() {
        assert_ne!(cipher(1).key_id(), cipher(2).key_id());
        let error = Cipher::from_base64(&Secret::new("c2hvcnQ="))
            .unwrap_err()
            .to_string();
        assert!(error.contains("32 bytes"), "{error}");
    }

    #[test]
    fn a_key_file_is_private_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = generate_key_file(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(read_key_file(&path).unwrap().expose().trim(), key.expose());
        assert!(generate_key_file(&path).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(
            read_key_file(&path)
                .unwrap_err()
                .to_string()
                .contains("chmod 600")
        );
    }
}
