//! Whether patches are put together as they were computed.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::patch::{Patch, chain};

/// Checks that each patch that was computed on top of others has them before it: those that the list
/// begins with. Without them it makes a model that nobody has measured.
///
/// # Errors
/// Where one has not.
pub fn check_beneath(patches: &[Patch]) -> Result<()> {
    if patches.iter().all(|patch| patch.under.is_none()) {
        return Ok(());
    }
    let mut chains = HashSet::new();
    let mut last: Option<String> = None;
    for patch in patches {
        if patch.under.as_ref().is_some_and(|under| !chains.contains(under)) {
            let fact = patch.facts.first().map(|fact| format!(" of `{}`", fact.prompt)).unwrap_or_default();
            return Err(Error::input_hint(
                format!(
                    "the patch{fact} by `{}` was computed on top of other patches than those before it",
                    patch.method
                ),
                "give all that it was made on top of before it, the oldest first, or the ledger that holds \
                 them; or take it as it is with `--independent`",
            ));
        }
        let on = chain(last.as_deref(), &patch.id()?);
        chains.insert(on.clone());
        last = Some(on);
    }
    Ok(())
}
