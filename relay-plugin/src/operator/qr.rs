//! A QR code for terminals. It bears what it shows: here, a TOTP seed.

use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use zeroize::Zeroizing;

use super::OperatorError;

/// `text` as a QR code, two modules per character. Dark and light are swapped, because terminals are mostly dark, and scanners read a code
/// with a light margin.
///
/// # Errors
/// [`OperatorError::Qr`] for a text that is too long.
pub fn render(text: &str) -> Result<Zeroizing<String>, OperatorError> {
    let code =
        QrCode::with_error_correction_level(text, EcLevel::L).map_err(|_| OperatorError::Qr)?;
    let image = code
        .render::<Dense1x2>()
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark)
        .quiet_zone(true)
        .build();
    Ok(Zeroizing::new(image))
}
