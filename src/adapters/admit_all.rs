//! The authorisation that admits everyone.

use crate::ports::auth::{Admission, AdmissionRequest, Auth, Deferral, Verdict};

/// Admits every connection, as a client of its own choice.
#[derive(Debug, Default)]
pub struct AdmitAll;

impl Auth for AdmitAll {
    fn admit(&self, _: &AdmissionRequest<'_>, _: Deferral<'_>) -> Admission {
        Admission::Decided(Verdict::Admitted(None))
    }
}
