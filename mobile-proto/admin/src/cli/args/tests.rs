//! Lines that are understood, and lines that are not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("keyturn-admin").chain(line.split_whitespace()))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_rotation_line_is_understood() {
    let cli = parse("rotate ext-totp-svc --reason q --grace 7d --not-before +30m --totp - --proof-command sign --json").unwrap();
    assert!(cli.global.json);
    let Command::Rotate(rotate) = cli.command else {
        panic!("another command")
    };
    assert_eq!(rotate.client.as_str(), "ext-totp-svc");
    assert_eq!(rotate.grace, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(rotate.not_before, Some(When::In(Duration::from_secs(1800))));
    assert_eq!(rotate.auth.proof.totp.as_deref(), Some("-"));
}

#[test]
fn relays_and_services_may_be_several() {
    let cli =
        parse("--relay ws://a --relay wss://b watch --service-url http://a --service-url http://b")
            .unwrap();
    let relays: Vec<String> = cli.global.relays.iter().map(ToString::to_string).collect();
    assert_eq!(relays, ["ws://a", "wss://b"]);
    assert_eq!(cli.global.service_urls, ["http://a", "http://b"]);
}

#[test]
fn moments_and_delays_are_told_apart() {
    let at = when("2026-01-31T12:00:00Z").unwrap();
    assert_eq!(at, When::At(UnixMs(1_769_860_800_000)));
    assert_eq!(at.resolve(UnixMs(0)), UnixMs(1_769_860_800_000));
    assert_eq!(when("0").unwrap().resolve(UnixMs(5)), UnixMs(5));
    for bad in ["", "tomorrow", "2026-01-31", "-5m", "7x"] {
        assert!(when(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn what_contradicts_itself_or_is_malformed_is_refused() {
    for line in [
        "rotate c",
        "rotate --reason r",
        "rotate a/b --reason r",
        "rotate c --reason r --proof-command x --proof-file y",
        "rotate c --reason r --reveal --discard",
        "rotate c --reason r --grace never",
        "revoke c --reason r --version 01jm8vezamg2dk6t4s9n7tt1c8",
        "ack nonsense",
        "group invite g",
        "group join",
        "init --service nsec1x",
        "--relay http://x watch",
        "rotate c --reason r --secret x",
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn no_option_takes_a_client_secret() {
    fn walk(command: &clap::Command) {
        for argument in command.get_arguments() {
            let name = argument.get_id().as_str();
            assert!(
                !name.contains("secret") && !name.contains("nsec") && !name.contains("password"),
                "{name}"
            );
        }
        command.get_subcommands().for_each(walk);
    }
    walk(&Cli::command());
}
