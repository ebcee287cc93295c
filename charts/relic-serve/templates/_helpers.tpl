{{- /* Labels of the parts, server and router; called with the chart and one of them, or "" for both. */ -}}
{{- define "relic.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "relic.labels" -}}
{{- $root := index . 0 -}}
{{ include "relic.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{- define "relic.account" -}}
{{ .Values.serviceAccount.name | default .Release.Name }}
{{- end }}

{{- /* The export: the value's, or what the roll-out has set in the cluster, which an upgrade must not undo. */ -}}
{{- define "relic.export" -}}
{{- $live := lookup "apps/v1" "Deployment" .Release.Namespace .Release.Name }}
{{- $found := .Values.export }}
{{- if not $found }}
{{- range dig "spec" "template" "spec" "containers" (list) $live }}
{{- range .env }}
{{- if eq .name "RELIC_EXPORT" }}
{{- $found = .value | default "" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $found }}
{{- end }}

{{- /* Pods: none before there is an export. An autoscaler's number in the cluster stays as it is: without one in the
template the upgrade would set it to 1. */ -}}
{{- define "relic.replicas" -}}
{{- $live := lookup "apps/v1" "Deployment" .Release.Namespace .Release.Name }}
{{- $now := dig "spec" "replicas" 0 $live | int }}
{{- if not (include "relic.export" .) -}}
0
{{- else if and $now (ne .Values.autoscaling.mode "none") -}}
{{ $now }}
{{- else -}}
{{ .Values.replicas }}
{{- end }}
{{- end }}

{{- /* How fast an autoscaler goes, of the HPA and of KEDA's. */ -}}
{{- define "relic.pace" -}}
{{- $up := .Values.autoscaling.scaleUp }}
{{- $down := .Values.autoscaling.scaleDown -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Pods, value: {{ $up.pods }}, periodSeconds: {{ $up.periodSeconds }}}
scaleDown:
  stabilizationWindowSeconds: {{ $down.stabilizationSeconds }}
  policies:
    - {type: Pods, value: {{ $down.pods }}, periodSeconds: {{ $down.periodSeconds }}}
{{- end }}

{{- define "relic.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "relic.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "relic.image" -}}
{{ required "give image: the serve image by digest, NAME@sha256:…" .Values.image }}
{{- end }}

{{- /* Where a pod may run; called with root, the chart, and a part's labels, nodeSelector and tolerations. */ -}}
{{- define "relic.place" -}}
{{- $root := .root }}
{{- $labels := .labels }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.topologyKeys }}
topologySpreadConstraints:
  {{- range . }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- $labels | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end }}

{{- define "relic.tokenVolume" -}}
{{- with .Values.tokenSecret.existingSecret }}
- name: token
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - {key: {{ $.Values.tokenSecret.file }}, path: token}
{{- end }}
{{- end }}

{{- define "relic.preStop" -}}
{{- with .Values.preStopSeconds }}
lifecycle:
  preStop:
    sleep: {seconds: {{ . }}}
{{- end }}
{{- end }}
