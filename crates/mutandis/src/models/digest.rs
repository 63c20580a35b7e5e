//! SHA-256 of files.

use std::{fs::File, io::Read, path::Path};

use sha2::{Digest, Sha256};

use crate::{Error, Result, interrupt::Interrupt, progress::Bar};

/// SHA-256 of a file in lower-case hexadecimal; `bar` moves by the bytes read.
pub(super) fn sha256(path: &Path, bar: &Bar, interrupt: &Interrupt) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        interrupt.check()?;
        let count = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if count == 0 {
            return Ok(hex(hasher));
        }
        hasher.update(&buffer[..count]);
        bar.advance(count as u64);
    }
}

/// A finished hash in lower-case hexadecimal.
pub(super) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
