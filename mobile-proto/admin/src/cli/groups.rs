//! `key-package` and `group …`.

use keyturn_proto::Npub;
use serde_json::json;

use super::Context;
use super::args::Group;
use super::error::CliError;
use crate::session::NewGroup;
use crate::transport::printable;

impl Context<'_> {
    pub(super) async fn key_package(&mut self) -> Result<(), CliError> {
        let _progress = self.output.progress("publishing a key package");
        let [addressable, legacy] = self.session.publish_key_package(self.deadline).await?;
        self.output.result(
            "key_package",
            json!({ "npub": self.session.npub(), "event": addressable, "legacy_event": legacy }),
            &format!(
                "key package published; others can invite {}",
                self.session.npub()
            ),
        );
        Ok(())
    }

    pub(super) async fn group(&mut self, command: Group) -> Result<(), CliError> {
        match command {
            Group::Create {
                name,
                members,
                without_service,
            } => self.create(name, members, without_service).await,
            Group::Invite { group, members } => {
                let id = self.session.find_group(Some(&group))?;
                let _progress = self.output.progress("inviting");
                self.session.invite(&id, &members, self.deadline).await?;
                self.output.result(
                    "invited",
                    json!({ "group": id, "members": members }),
                    &format!("invited {} to {id}", names(&members)),
                );
                Ok(())
            }
            Group::Members { group } => self.members(group.as_deref()),
            Group::List => self.list(),
            Group::Join { from } => {
                let _progress = self.output.progress("joining");
                self.session.join(&from, self.deadline).await?;
                self.list()
            }
        }
    }

    async fn create(
        &mut self,
        name: String,
        admins: Vec<Npub>,
        without_service: bool,
    ) -> Result<(), CliError> {
        let members = if without_service {
            Vec::new()
        } else if self.config.services.is_empty() {
            return Err(CliError::Usage(
                "no service is configured; add `services` to config.toml or pass --without-service"
                    .to_owned(),
            ));
        } else {
            self.config.services.clone()
        };
        let _progress = self.output.progress("making the group");
        let spec = NewGroup {
            name,
            admins,
            members,
        };
        let group = self.session.create_group(spec, self.deadline).await?;
        self.output.result(
            "group",
            json!({ "group": group.id, "name": group.data.name, "nostr_group_id": group.nostr_group_id.to_hex(), "members": group.members }),
            &format!("{}  {}", group.id, printable(&group.data.name)),
        );
        Ok(())
    }

    fn list(&self) -> Result<(), CliError> {
        for group in self.session.groups()? {
            let frozen = group.frozen.is_some();
            self.output.result(
                "group",
                json!({
                    "group": group.id, "name": group.data.name, "nostr_group_id": group.nostr_group_id.to_hex(),
                    "epoch": group.epoch, "members": group.members, "frozen": frozen,
                }),
                &format!(
                    "{}  {}  ({} members, epoch {}){}",
                    group.id,
                    printable(&group.data.name),
                    group.members,
                    group.epoch,
                    if frozen { "  FROZEN: an operator must look" } else { "" },
                ),
            );
        }
        for welcome in self.session.waiting_welcomes() {
            self.output.result(
                "invitation",
                &welcome,
                &format!(
                    "invited by {} to {}; accept with: keyturn-admin group join --from {}",
                    welcome.from,
                    printable(&welcome.name),
                    welcome.from
                ),
            );
        }
        Ok(())
    }

    fn members(&self, group: Option<&str>) -> Result<(), CliError> {
        let id = self.session.find_group(group)?;
        let admins = self
            .session
            .groups()?
            .into_iter()
            .find(|info| info.id == id)
            .map(|info| info.data.admins)
            .unwrap_or_default();
        for leaf in self.session.members(&id)? {
            let npub = Npub::from_bytes(leaf.npub.to_bytes());
            let role = if self.config.services.contains(&npub) {
                "service"
            } else if admins.contains(&leaf.npub) {
                "admin"
            } else {
                "member"
            };
            let me = npub == self.session.npub();
            self.output.result(
                "member",
                json!({ "group": id, "npub": npub, "role": role, "me": me, "signature_key": leaf.signature_key.to_hex() }),
                &format!("{npub}  {role}{}", if me { "  (you)" } else { "" }),
            );
        }
        Ok(())
    }
}

fn names(npubs: &[Npub]) -> String {
    let names: Vec<String> = npubs.iter().map(Npub::to_string).collect();
    names.join(", ")
}
