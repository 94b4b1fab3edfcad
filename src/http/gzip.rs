//! Content coding for large answers such as `/metrics`.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

/// Whether an answer to this `Accept-Encoding` header may be, and should be, gzip.
///
/// Follows RFC 9110 section 12.5.3: the highest weight wins, `gzip;q=0` forbids, `*` stands
/// for every coding not named. Stays with the plain answer when there is no header, when the
/// header prefers `identity`, and for a weight that cannot be read: plain is never wrong.
///
/// An answer that depends on this must carry `Vary: Accept-Encoding`.
pub fn accepts_gzip(accept_encoding: Option<&str>) -> bool {
    let Some(header) = accept_encoding else {
        return false;
    };
    let gzip = weight(header, "gzip")
        .or_else(|| weight(header, "x-gzip")) // RFC 9110 section 8.4.1.3: the same coding
        .or_else(|| weight(header, "*"))
        .unwrap_or(0.0);
    // `*` is not asked here: it says that identity is allowed, not that it is preferred.
    let identity = weight(header, "identity").unwrap_or(0.0);
    gzip > 0.0 && gzip >= identity
}

/// The weight, 0 to 1, that the header gives to exactly this coding.
fn weight(header: &str, coding: &str) -> Option<f32> {
    header.split(',').find_map(|element| {
        let (name, parameter) = element.split_once(';').unwrap_or((element, "q=1"));
        if !name.trim().eq_ignore_ascii_case(coding) {
            return None;
        }
        let weight = parameter
            .split_once('=')
            .filter(|(key, _)| key.trim().eq_ignore_ascii_case("q"))
            .and_then(|(_, value)| value.trim().parse().ok())
            .filter(|weight| (0.0..=1.0).contains(weight));
        Some(weight.unwrap_or(0.0))
    })
}

/// The bytes as one gzip member (RFC 1952).
///
/// Level "fast": metrics text shrinks tenfold already, and a scrape waits for it. Keeps the
/// processor for some milliseconds per megabyte, so large bodies belong on a blocking thread.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("writing into memory does not fail")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accept_encoding_table() {
        let table = [
            (None, false),
            (Some(""), false),
            (Some("gzip"), true),
            (Some("GZip"), true),
            (Some("x-gzip"), true),
            (Some("deflate, gzip;q=1.0, *;q=0.5"), true),
            (Some("br;q=1.0 , gzip ; q=0.001"), true),
            (Some("gzip;Q=0.5"), true),
            (Some("gzip;q=0"), false),
            (Some("gzip;q=0.000"), false),
            (Some("gzip;q=0, *"), false),
            (Some("*, gzip;q=0"), false),
            (Some("*"), true),
            (Some("*;q=0"), false),
            (Some("*;q=0, gzip"), true),
            (Some("identity"), false),
            (Some("identity, *;q=0.5"), false),
            (Some("identity;q=0.5, gzip;q=0.5"), true),
            (Some("gzip;q=0.2, identity;q=0.9"), false),
            (Some("identity;q=0, gzip"), true),
            (Some("br, deflate"), false),
            (Some("gzipped"), false),
            (Some("gzip;q=2"), false),
            (Some("gzip;q=-1"), false),
            (Some("gzip;q=NaN"), false),
            (Some("gzip;q="), false),
            (Some("gzip;level=9"), false),
        ];
        for (header, expected) in table {
            assert_eq!(accepts_gzip(header), expected, "{header:?}");
        }
    }

    #[test]
    fn metrics_text_shrinks() {
        let text = "token_expires_at_seconds{credential=\"a\"} 1\n".repeat(1000);
        assert!(gzip(text.as_bytes()).len() * 10 < text.len());
    }

    proptest! {
        #[test]
        fn what_was_packed_can_be_unpacked(bytes: Vec<u8>) {
            let mut unpacked = Vec::new();
            GzDecoder::new(&gzip(&bytes)[..]).read_to_end(&mut unpacked).unwrap();
            prop_assert_eq!(unpacked, bytes);
        }

        #[test]
        fn no_header_makes_it_panic(header: String) {
            accepts_gzip(Some(&header));
        }
    }
}
