# What Keyturn needs of Vault or OpenBao, and nothing more. Put your mount and role where this says `approle` and `river-iot`;
# repeat the five role paths for every role that devices have. The tests run under this very file.

# The role's id, which a device needs to log in. It never changes.
path "auth/approle/role/river-iot/role-id" {
  capabilities = ["read"]
}

# Issuing a secret_id, and listing accessors to find one whose answer was lost.
path "auth/approle/role/river-iot/secret-id" {
  capabilities = ["update", "list"]
}

# Whose secret_id an accessor names, and whether it is gone.
path "auth/approle/role/river-iot/secret-id-accessor/lookup" {
  capabilities = ["update"]
}

# Taking one back.
path "auth/approle/role/river-iot/secret-id-accessor/destroy" {
  capabilities = ["update"]
}

# Our own token. The `default` policy grants these as well.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
path "sys/capabilities-self" {
  capabilities = ["update"]
}
