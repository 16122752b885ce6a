package aegisagent

import (
	"crypto/x509"
	"os"
	"runtime"
)

// Where Unix systems keep the certificates that they believe. crypto/x509 would let SSL_CERT_FILE and SSL_CERT_DIR name others: whoever
// sets a variable could then read the credential.
var certificateFiles = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/ssl/cert.pem",
	"/usr/local/etc/ssl/cert.pem",
	"/usr/local/share/certs/ca-root-nss.crt",
}

// certificates gives those of a file of one's own, or the system's; nil means that the system itself verifies.
func certificates(caFile string) (*x509.CertPool, error) {
	files := certificateFiles
	if caFile != "" {
		files = []string{caFile}
	} else if isAskedOfTheSystem() {
		return nil, nil
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		pool := x509.NewCertPool()
		if pool.AppendCertsFromPEM(text) {
			return pool, nil
		}
	}
	if caFile != "" {
		return nil, misconfigured("CAFile cannot be read, or holds no certificate")
	}
	return nil, misconfigured("this system keeps its certificates in no place that is known; name a file of them in CAFile")
}

func isAskedOfTheSystem() bool {
	switch runtime.GOOS {
	case "darwin", "ios", "windows":
		return true
	}
	return false
}
