-- What Argo CD shall think of a PayloadBuild or a PayloadImport.
local status = obj.status or {}
if obj.metadata.deletionTimestamp ~= nil then
  return { status = "Progressing", message = "it is being deleted" }
end
if status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "the controller has not seen this version yet" }
end
local ready = { status = "Unknown", reason = "", message = "" }
local isStalled = false
for _, condition in ipairs(status.conditions) do
  if condition.type == "Ready" then
    ready = condition
  elseif condition.type == "Stalled" and condition.status == "True" then
    isStalled = true
  end
end
local health = "Progressing"
if ready.status == "True" then
  health = "Healthy"
elseif isStalled then
  health = "Degraded"
elseif ready.reason == "Suspended" then
  health = "Suspended"
end
return { status = health, message = ready.message }
