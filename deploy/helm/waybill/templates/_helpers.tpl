{{- define "waybill.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "waybill.fullname" -}}
{{- $name := include "waybill.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "%s begins the names of Services, and so has to begin with a letter and to have letters, digits and - alone: set fullnameOverride, or name the release otherwise" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{- /* Labels that never change: of selectors. Takes (dict "root" $ "component" "gateway"). */ -}}
{{- define "waybill.selector" -}}
app.kubernetes.io/name: {{ include "waybill.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "waybill.labels" -}}
{{ include "waybill.selector" . }}
app.kubernetes.io/part-of: waybill
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end -}}

{{- define "waybill.image" -}}
{{- $image := .root.Values.image -}}
{{- $name := printf "waybill-%s" .component | trimSuffix "-cli" -}}
{{- $repository := ternary $name (printf "%s/%s" (trimSuffix "/" $image.registry) $name) (empty $image.registry) -}}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}

{{- define "waybill.serviceAccount" -}}
{{- $account := .Values.serviceAccount -}}
{{- ternary (default (include "waybill.fullname" .) $account.name) (default "default" $account.name) $account.create -}}
{{- end -}}

{{- define "waybill.natsHost" -}}
{{- default (printf "%s-nats" .Release.Name) .Values.nats.fullnameOverride -}}
{{- end -}}

{{- define "waybill.brokerUrl" -}}
{{- if .Values.broker.url -}}
{{- .Values.broker.url -}}
{{- else if .Values.nats.enabled -}}
{{- if not (or .Values.broker.passwords.secret .Values.broker.credentials.gateway) -}}
{{- fail "broker.passwords.secret is required with nats.enabled: the Secret that nats.container.env names" -}}
{{- end -}}
{{- if not .Values.provision.enabled -}}
{{- fail "provision.enabled is required with nats.enabled: no other user of that broker may make the streams" -}}
{{- end -}}
nats://{{ include "waybill.natsHost" . }}:4222
{{- else -}}
{{- fail "broker.url is required, unless nats.enabled installs a broker" -}}
{{- end -}}
{{- end -}}

{{- define "waybill.paymentUrl" -}}
{{- if and .Values.payment.url .Values.paymentSandbox.enabled -}}
{{- fail "payment.url and paymentSandbox.enabled: choose one" -}}
{{- else if .Values.payment.url -}}
{{- .Values.payment.url -}}
{{- else if .Values.paymentSandbox.enabled -}}
http://{{ include "waybill.fullname" . }}-payment-sandbox:50052
{{- else -}}
{{- fail "payment.url is required: where payments.v1.PaymentService is served. To try Waybill out, paymentSandbox.enabled moves no money" -}}
{{- end -}}
{{- end -}}

{{- define "waybill.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
# Secrets are mounted readable for this group alone.
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "waybill.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "waybill.probes" -}}
# Liveness ignores the broker: an unreachable broker must not restart programs.
livenessProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 10
  timeoutSeconds: 2
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 1
{{- end -}}

{{- /* Settings of every program. */ -}}
{{- define "waybill.logEnv" -}}
- name: RUST_LOG
  value: {{ .Values.log.level | quote }}
- name: LOG_FORMAT
  value: {{ .Values.log.format | quote }}
{{- with .Values.tracing.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ $.Values.tracing.protocol | quote }}
{{- end }}
{{- range $name, $value := .Values.tracing.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- /* Settings of a client of the broker. Takes (dict "root" $ "user" "gateway"). */ -}}
{{- define "waybill.brokerEnv" -}}
{{- $broker := .root.Values.broker -}}
{{- $url := include "waybill.brokerUrl" .root }}
{{- if $broker.passwords.secret }}
{{- if get $broker.credentials .user }}
{{- fail "broker.passwords and broker.credentials: choose one" }}
{{- end }}
- name: NATS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $broker.passwords.secret }}
      key: {{ .user }}
{{- /* Of the first server; the client shows it to the others too. */}}
{{- $url = regexReplaceAll "^([a-z]+)://" $url (printf "${1}://%s:$(NATS_PASSWORD)@" .user) }}
{{- end }}
- name: NATS_URL
  value: {{ $url | quote }}
{{- if get $broker.credentials .user }}
- name: NATS_CREDS
  value: /etc/waybill/credentials/{{ $broker.credentials.key }}
{{- end }}
{{- with $broker.tls }}
{{- if and (or .cert .key) (not (and .secret .cert .key)) }}
{{- fail "broker.tls: cert and key are keys of broker.tls.secret, and go together" }}
{{- end }}
{{- if .secret }}
- name: NATS_TLS_CA
  value: /etc/waybill/broker-tls/{{ .ca }}
{{- if .cert }}
- name: NATS_TLS_CERT
  value: /etc/waybill/broker-tls/{{ .cert }}
- name: NATS_TLS_KEY
  value: /etc/waybill/broker-tls/{{ .key }}
{{- end }}
{{- end }}
{{- end }}
{{- with .root.Values.orders.replicas }}
- name: ORDERS_REPLICAS
  value: {{ . | quote }}
{{- end }}
{{- with .root.Values.orders.retention }}
- name: ORDERS_RETENTION
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "waybill.brokerMounts" -}}
{{- if get .root.Values.broker.credentials .user }}
- name: credentials
  mountPath: /etc/waybill/credentials
  readOnly: true
{{- end }}
{{- if .root.Values.broker.tls.secret }}
- name: broker-tls
  mountPath: /etc/waybill/broker-tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "waybill.brokerVolumes" -}}
{{- with get .root.Values.broker.credentials .user }}
{{ include "waybill.secretVolume" (dict "name" "credentials" "secret" .) }}
{{- end }}
{{- with .root.Values.broker.tls.secret }}
{{ include "waybill.secretVolume" (dict "name" "broker-tls" "secret" .) }}
{{- end }}
{{- end -}}

{{- define "waybill.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end -}}

{{- /* The file of the routes, if there are some. Takes (dict "name" CONFIGMAP). */ -}}
{{- define "waybill.routesVolume" -}}
- name: routes
  configMap:
    name: {{ .name }}
{{- end -}}

{{- define "waybill.routesMount" -}}
- name: routes
  mountPath: /etc/waybill/routes
  readOnly: true
{{- end -}}

{{- define "waybill.routesEnv" -}}
- {name: ROUTES_FILE, value: /etc/waybill/routes/routes.yaml}
{{- end -}}

{{- /* The steps: those of the chart, then those of `steps`, as a list in YAML. */ -}}
{{- define "waybill.steps" -}}
{{- range list "inventory" "payment" "fulfilment" }}
- {{ . }}
{{- end }}
{{- range $step, $values := .Values.steps }}
- {{ $step }}
{{- end }}
{{- end -}}

{{- /* Where pods go. Takes (dict "root" $ "component" "gateway" "values" .Values.gateway). */ -}}
{{- define "waybill.scheduling" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .root.Values.topologySpread }}
topologySpreadConstraints:
  {{- range .root.Values.topologySpread }}
  - maxSkew: 1
    topologyKey: {{ .topologyKey }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "waybill.selector" (dict "root" $.root "component" $.component) | nindent 8 }}
    # Pods of the version before do not count.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{- /* The port of a URL, or that of its scheme. */ -}}
{{- define "waybill.portOf" -}}
{{- $url := urlParse . -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) -}}
{{- default (ternary "443" "80" (eq $url.scheme "https")) $port -}}
{{- end -}}


{{- /* The variables of a container, none of them twice: which of two holds is easily mistaken. Takes (dict "env" TEXT "more" extraEnv
       "named" "gateway.extraEnv"). */ -}}
{{- define "waybill.onceEach" -}}
{{- $names := list -}}
{{- $env := concat (fromYamlArray .env) .more -}}
{{- range $env -}}
{{- if has .name $names -}}
{{- fail (printf "%s: %s is set twice: by the chart from another value (tracing.env, say), or here" $.named .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- toYaml $env -}}
{{- end -}}

{{- /* Refuses a range of replicas that is none. Takes (dict "autoscaling" VALUES "named" "gateway.autoscaling"). */ -}}
{{- define "waybill.replicas" -}}
{{- if and .autoscaling.enabled (gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- fail (printf "%s: minReplicas (%v) is above maxReplicas (%v)" .named .autoscaling.minReplicas .autoscaling.maxReplicas) -}}
{{- end -}}
{{- end -}}

{{- /* A time such as 500ms, in milliseconds. */ -}}
{{- define "waybill.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul (int64 (trimSuffix $unit .)) (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000) $unit) -}}
{{- end -}}

{{- /* Refuses a time that the programs would not take. Takes (dict "time" VALUE "named" "processors.ackWait" "least" "100ms" "most" "1d"). */ -}}
{{- define "waybill.between" -}}
{{- if .time -}}
{{- $time := int64 (include "waybill.milliseconds" .time) -}}
{{- if or (lt $time (int64 (include "waybill.milliseconds" .least))) (gt $time (int64 (include "waybill.milliseconds" .most))) -}}
{{- fail (printf "%s: must be %s to %s, and is %s" .named .least .most .time) -}}
{{- end -}}
{{- end -}}
{{- end -}}
