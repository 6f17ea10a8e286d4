#!/bin/sh
# A CA of your own for broker, service and devices, with openssl (1.1.1 or newer).
#
#   ./certificates.sh ca                           ca.key, ca.crt: for broker and devices; service-ca.key, service-ca.crt: for the relays
#   ./certificates.sh broker NAME [NAME...]        broker.key, broker.crt for these host names and addresses
#   ./certificates.sh service                      service.key, service.crt: the relay's own
#   ./certificates.sh device DEVICE_ID             DEVICE_ID.key, DEVICE_ID.crt
#   ./certificates.sh revoke DEVICE_ID             takes the certificate back and writes ca.crl
#
# Everything is written to the current folder; an existing key is never replaced. The CAs' keys are needed for making certificates only: keep them
# off the broker. A device's key is best made on the device; then sign its request with the lines of `sign` below.
set -eu
umask 077

fail() { echo "$*" >&2; exit 1; }

# The service's common name; the access rules give it rights that no device may have.
SERVICE=keyturn-service

new_key() { # file
  [ ! -e "$1" ] || fail "$1 exists and is not replaced"
  openssl ecparam -name prime256v1 -genkey -noout -out "$1"
}

# openssl's own configuration differs from machine to machine; nothing of it is used.
bare='[req]
distinguished_name = name
[name]
'

authority() { # name, common name
  new_key "$1.key"
  printf '%s[own]\nbasicConstraints = critical, CA:true\nkeyUsage = critical, keyCertSign, cRLSign\nsubjectKeyIdentifier = hash\n' "$bare" > "$1.conf"
  openssl req -x509 -new -config "$1.conf" -extensions own -key "$1.key" -sha256 -days 7300 -subj "/CN=$2" -out "$1.crt"
  chmod 644 "$1.crt"
  rm "$1.conf"
}

sign() { # name, common name, CA, extensions
  printf '%s[own]\nbasicConstraints = critical, CA:false\nkeyUsage = critical, digitalSignature\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n%s\n' \
    "$bare" "$4" > "$1.conf"
  openssl req -new -config "$1.conf" -key "$1.key" -subj "/CN=$2" -out "$1.csr"
  # Random serial numbers: certificates can be made in several places.
  openssl x509 -req -in "$1.csr" -CA "$3.crt" -CAkey "$3.key" -set_serial "0x00$(openssl rand -hex 15)" -sha256 -days 825 \
    -extfile "$1.conf" -extensions own -out "$1.crt" 2>/dev/null || fail "$1.csr was not signed; are $3.crt and $3.key here?"
  chmod 644 "$1.crt"
  rm "$1.csr" "$1.conf"
}

client() { # name, common name, CA
  new_key "$1.key"
  sign "$1" "$2" "$3" 'extendedKeyUsage = clientAuth'
}

case "${1-}" in
  ca)
    authority ca "keyturn devices"
    authority service-ca "keyturn services"
    ;;
  broker)
    shift
    [ $# -gt 0 ] || fail "name the host names and addresses that clients use"
    first=$1
    names=
    for name in "$@"; do
      case "$name" in
        *:* | [0-9]*.[0-9]*.[0-9]*.[0-9]*) names="$names,IP:$name" ;;
        *) names="$names,DNS:$name" ;;
      esac
    done
    new_key broker.key
    sign broker "$first" ca "extendedKeyUsage = serverAuth
subjectAltName = ${names#,}"
    ;;
  service)
    client service "$SERVICE" service-ca
    ;;
  device)
    id=${2-}
    # What Keyturn takes for a device id, less what is awkward in file names and certificates' names; a common name has at most 64 characters.
    case "$id" in
      '' | *[!A-Za-z0-9._:-]* | [.-]*) fail "a device id has letters, digits and . _ : - and does not begin with . or -" ;;
      "$SERVICE" | keyturn-doctor | ca | service-ca | broker | service) fail "$id is not a device's name" ;;
    esac
    [ "${#id}" -le 64 ] || fail "a common name has at most 64 characters"
    client "$id" "$id" ca
    ;;
  revoke)
    id=${2-}
    [ -e "$id.crt" ] || fail "there is no $id.crt"
    # openssl keeps the list of what was taken back in these two files.
    [ -e revoked.txt ] || : > revoked.txt
    [ -e revoked.number ] || echo 01 > revoked.number
    printf '[ca]\ndefault_ca = own\n[own]\ndatabase = revoked.txt\ncrlnumber = revoked.number\ndefault_md = sha256\ndefault_crl_days = 365\n' > revoked.conf
    openssl ca -config revoked.conf -keyfile ca.key -cert ca.crt -revoke "$id.crt" 2>/dev/null
    openssl ca -config revoked.conf -keyfile ca.key -cert ca.crt -gencrl -out ca.crl 2>/dev/null
    chmod 644 ca.crl
    ;;
  *)
    fail "usage: $0 ca | broker NAME... | service | device DEVICE_ID | revoke DEVICE_ID"
    ;;
esac
